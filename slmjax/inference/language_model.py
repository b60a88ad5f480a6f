"""A model as its user holds it: config, parameters, tokenizer. Loading from runs, checkpoints and saved models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.inference.decoding import Network
from slmjax.inference.saved_model import (
    CONFIG,
    FORMAT,
    abstract_params,
    model_config_from,
    read_json,
    read_saved_config,
    read_saved_params,
    read_saved_stop_ids,
    read_stop_ids,
    write_saved,
)
from slmjax.models.attention.kernels import attention_for
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.linear import cast_weights
from slmjax.models.transformer import Transformer
from slmjax.models.unstacked import unstack
from slmjax.peft.adapters_by_row import for_rows, stack_adapters
from slmjax.peft.interception import NOTHING_MORE, Options, applied
from slmjax.peft.prefix_cache import prefix_length
from slmjax.peft.targets import flatten
from slmjax.quantization.weights import dequantized
from slmjax.sharding.rules import tree_shardings
from slmjax.tokenization.tokenizer import STOP_IDS, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class LanguageModel:
    """`params` is a nested dict of arrays; `apply` and everything built on it are pure functions of it."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...] = ()  # at which generation ends; none: the tokenizer's eos alone
    peft: dict[str, Any] = field(default_factory=dict)  # what a fine-tune adds beside `params`, if it is not merged
    options: Options = NOTHING_MORE  # of what is added

    @cached_property
    def model(self) -> Transformer:
        """The network, run in a way that suits generation on this machine."""
        platform = jax.default_backend()
        on_cpu = platform == "cpu"
        dtype = jnp.float32 if on_cpu else jnp.bfloat16  # XLA's bfloat16 matrix-vector product on CPUs is ~19x slower
        execution = Execution(dtype=dtype, attention=attention_for(platform), scan_unroll=0 if on_cpu else 1)
        return Transformer(self.config, execution)

    @property
    def variables(self) -> dict[str, Any]:
        """The collections of the network, as `peft.interception.applied` takes them with `options`."""
        return self._with_peft(self.params)

    @property
    def context_length(self) -> int:
        """Tokens of text that the model may be given: its context without the prefix, if it has one."""
        return self.config.context_length - prefix_length(self.peft)

    def decoding(self, num_rows: int) -> tuple[Network, dict[str, Any]]:
        """What generation of so many rows runs, and its variables.

        On CPU these are a second copy of the parameters, made at the first use and kept until another arrangement is
        asked for: one row and several are fastest in different ones.
        """
        # What is added finds the products by their names, so they must be there one by one.
        on_cpu = jax.default_backend() == "cpu"
        layout = "stacked" if not on_cpu else "fused" if num_rows == 1 and not self.peft else "unstacked"
        if self._arranged.get("layout") != layout:
            self._arranged.clear()  # before the new copy is made: two at once are enough
            self._arranged.update(layout=layout, decoding=self._arrange(layout))
        return self._arranged["decoding"]

    @cached_property
    def _arranged(self) -> dict[str, Any]:
        return {}

    def _arrange(self, layout: str) -> tuple[Network, dict[str, Any]]:
        model, dtype = self.model, self.model.execution.dtype
        if layout == "stacked":
            return Network(model, self.options), self._with_peft(cast_weights(self.params, dtype))
        execution = dataclasses.replace(model.execution, layout=layout)
        # Quantized weights are made whole here: a CPU would do it again for every token.
        variables = {"params": unstack(self.config, dequantized(self.params), dtype, layout=layout)}
        if self.peft:
            variables["peft"] = unstack(self.config, self.peft, dtype)
        return Network(Transformer(self.config, execution), self.options), variables

    def apply(self, params: Any, tokens_BT: jax.Array) -> jax.Array:
        """float32 logits [B, T, V] of int32 tokens [B, T]; pure, and may be jitted."""
        return applied(self.model, self._with_peft(params), tokens_BT, options=self.options)

    def with_adapters(self, rows: Sequence[Any]) -> LanguageModel:
        """This base with an adapter for each row of a batch, which must then have as many rows.

        rows: collections of LoRA, as `peft` of runs on this base that were loaded with merge=False; {}: the base alone.
        """
        if not any(rows):
            return dataclasses.replace(self, peft={}, options=NOTHING_MORE)
        return dataclasses.replace(
            self, peft=for_rows(stack_adapters(rows), jnp.arange(len(rows))), options=NOTHING_MORE
        )

    def _with_peft(self, params: Any) -> dict[str, Any]:
        return {"params": params, "peft": self.peft} if self.peft else {"params": params}


@dataclass(frozen=True)
class Location:
    """What a path turned out to be, before any array is read."""

    kind: Literal["run", "checkpoint", "saved model"]
    directory: Path  # of the run or the saved model
    config: ModelConfig
    run: dict[str, Any]  # the run's config; empty for a saved model
    step: int | None  # of the checkpoint that the path names


def locate(path: str | Path) -> Location:
    """Which of the three kinds of model a path is; UserError when it is none."""
    path = local_path(path, "The model")
    if not path.exists():
        raise UserError(f"There is no model at {path}.")
    if path.is_file():
        raise UserError(
            f"{path} is a file: give a run's workdir, one of its checkpoints, or a saved model's directory."
        )
    absolute = path.resolve()
    if (path / CONFIG).is_file():
        values = read_json(path / CONFIG)
        if "training" in values and "model" in values:
            return Location("run", path, model_config_from(values["model"], path / CONFIG), values, None)
        if values.get("format") == FORMAT:
            return Location("saved model", path, read_saved_config(path), {}, None)
        if "model_type" in values or "architectures" in values:
            raise UserError(f"{path} is a Hugging Face model: it is loaded by slmjax.load.")
        if "format" in values:
            raise UserError(f"{path / CONFIG} is of format {values['format']!r}, not {FORMAT!r}.")
    workdir = absolute.parent.parent
    if absolute.name.isdecimal() and absolute.parent.name == "checkpoints" and (workdir / CONFIG).is_file():
        values = read_json(workdir / CONFIG)
        config = model_config_from(values.get("model"), workdir / CONFIG)
        return Location("checkpoint", workdir, config, values, int(absolute.name))
    raise UserError(f"{path} is no slmjax run, checkpoint or saved model (it has no {CONFIG} of ours).")


def load(path: str | Path, *, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None) -> LanguageModel:
    """A run's workdir (its newest readable checkpoint), a step directory of it, or a directory that `save` wrote.

    Where a run kept an average of its weights (training.ema_decay), that is what is loaded. mesh: to spread the arrays
    over; None is the first device. dtype: of the arrays; None is float32 for a run's, that of its file for a saved
    model's.
    """
    place = locate(path)
    if place.kind == "saved model":
        params = _placed(read_saved_params(place.directory, place.config), mesh, dtype)
        tokenizer, stop_ids = load_tokenizer(place.directory), read_saved_stop_ids(place.directory)
        return LanguageModel(place.config, params, tokenizer, stop_ids)
    from slmjax.training.checkpoints.checkpointer import Checkpointer

    tokenizer, stop_ids = run_tokenizer(place)
    averaged = bool(_get(place.run, "training", "ema_decay"))
    params = Checkpointer(place.directory / "checkpoints").restore_params(
        _to_restore(abstract_params(place.config), mesh), step=place.step, name="ema" if averaged else "params"
    )
    return LanguageModel(place.config, _placed(params, None, dtype), tokenizer, stop_ids)


def run_tokenizer(place: Location) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer of a run or checkpoint, and the ids at which the answers of its base end, if it has one."""
    directory = tokenizer_directory(place)
    tokenizer = load_tokenizer(directory)
    # A run's corpus says whether its documents began with the bos token, whatever the tokenizer's own settings say.
    tokenizer.settings["add_bos_token"] = bool(_get(place.run, "data", "add_bos"))
    return tokenizer, read_stop_ids(tokenizer.settings.pop(STOP_IDS, []), directory)


def save(lm: LanguageModel, directory: str | Path, *, dtype: str = "float32") -> Path:
    """Write config.json, params.safetensors and the tokenizer to a directory that `load` reads; returns it.

    dtype: float32 or bfloat16. Written whole or not at all; an existing saved model is replaced, anything else refused.
    """
    require_plain(lm)
    return write_saved(lm.config, lm.params, lm.tokenizer, local_path(directory, "The destination"), dtype, lm.stop_ids)


def require_plain(lm: LanguageModel) -> None:
    """UserError where parameters alone are not the model."""
    if any("lora_" in path or "ia3_" in path for path in flatten(lm.peft)):
        raise UserError("This model's adapter is not merged, and files of models hold weights alone: load it merged.")
    if lm.peft:
        what = "prefix" if prefix_length(lm.peft) else "bottleneck adapter"
        raise UserError(
            f"This model has a {what}, which no file of weights can hold: write it apart (slmjax convert --format "
            f"{'peft' if prefix_length(lm.peft) else 'adapterhub'})."
        )


def tokenizer_directory(place: Location) -> Path:
    """Where a model's tokenizer lies: in it, beside a run's checkpoints, else with the run's corpus."""
    if place.kind == "saved model":
        return place.directory
    copied = place.directory / "tokenizer"
    if copied.is_dir():
        return copied
    cache = _get(place.run, "data", "cache_dir")
    base = Path(cache) if isinstance(cache, str) and cache else place.directory / "data"
    return base / "corpus" / "tokenizer" if (base / "corpus").is_dir() else base / "tokenizer"


def _get(run: dict[str, Any], section: str, key: str) -> Any:
    values = run.get(section)
    return values.get(key) if isinstance(values, dict) else None


def _to_restore(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Abstract arrays with the shardings that they are to be restored to."""
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, tree)
    else:
        shardings = tree_shardings(tree, mesh)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def _placed(params: Any, mesh: jax.sharding.Mesh | None, dtype: str | None) -> Any:
    params = params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params)
    return params if mesh is None else jax.device_put(params, tree_shardings(params, mesh))
