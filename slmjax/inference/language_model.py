"""A model as its user holds it: config, parameters, tokenizer. Loading and saving in slmjax's own formats."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.attention_kernels import attention_for
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.sharding.rules import path_string
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer

FORMAT = "slmjax"
WEIGHTS = "params.safetensors"


@dataclass(frozen=True)
class LanguageModel:
    """`params` is a nested dict of arrays; `apply` and everything built on it are pure functions of it."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer

    @cached_property
    def model(self) -> Transformer:
        """The network, run in a way that suits generation on this machine."""
        platform = jax.default_backend()
        on_cpu = platform == "cpu"
        dtype = jnp.float32 if on_cpu else jnp.bfloat16
        execution = Execution(dtype=dtype, attention=attention_for(platform), scan_unroll=0 if on_cpu else 1)
        return Transformer(self.config, execution)

    def apply(self, params: Any, tokens_BT: jax.Array) -> jax.Array:
        """float32 logits [B, T, V] of int32 tokens [B, T]."""
        return self.model.apply({"params": params}, tokens_BT)  # type: ignore[return-value]


def abstract_params(config: ModelConfig) -> Any:
    """Shapes and dtypes of a config's parameters."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]


def load(path: str | Path) -> LanguageModel:
    """A run's workdir (its newest checkpoint), one step directory of it, or a directory that `save` wrote."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no model at {path}.")
    config_file = path / "config.json"
    if config_file.is_file():
        values = _read_json(config_file)
        if values.get("format") == FORMAT:
            return _load_saved(path, values)
        if "training" in values and "model" in values:
            return _load_run(path, values, None)
        if "model_type" in values or "architectures" in values:
            raise UserError(f"{path} is a Hugging Face model; this version reads only slmjax's own runs and models.")
    if path.name.isdecimal() and (path.parent.parent / "config.json").is_file():
        workdir = path.parent.parent
        return _load_run(workdir, _read_json(workdir / "config.json"), int(path.name))
    raise UserError(f"{path} is no slmjax run, checkpoint or model (it has no config.json of ours).")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1 << 24:
            raise UserError(f"{path} is larger than a config can be.")
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object.")
    return values


def model_config_from(values: dict[str, Any], where: str) -> ModelConfig:
    """A ModelConfig from JSON values; UserError naming what does not fit."""
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ModelConfig(**fields)
    except TypeError as error:
        raise UserError(f"{where} describes no model of this version: {error}.") from error


def _load_run(workdir: Path, run: dict[str, Any], step: int | None) -> LanguageModel:
    from slmjax.training.checkpoints import Checkpointer

    config = model_config_from(run["model"], str(workdir / "config.json"))
    checkpointer = Checkpointer(workdir / "checkpoints")
    step = checkpointer.latest_step() if step is None else step
    if step is None:
        raise UserError(f"The run in {workdir} has no checkpoint yet.")
    name = "ema" if run["training"].get("ema_decay") else "params"
    params = checkpointer.restore_params(_on_this_device(abstract_params(config)), step=step, name=name)
    return LanguageModel(config, params, load_tokenizer(tokenizer_directory(workdir, run)))


def tokenizer_directory(workdir: Path, run: dict[str, Any]) -> Path:
    """Where a run's tokenizer lies: beside its checkpoints, since the corpus may be gone."""
    copied = workdir / "tokenizer"
    return copied if copied.is_dir() else Path(run["data"]["cache_dir"] or workdir / "data") / "corpus" / "tokenizer"


def _on_this_device(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _load_saved(path: Path, values: dict[str, Any]) -> LanguageModel:
    from safetensors import SafetensorError, safe_open

    config = model_config_from(values.get("model") or {}, str(path / "config.json"))
    wanted = {path_string(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config))}
    arrays = {}
    try:
        with safe_open(path / WEIGHTS, framework="flax") as file:
            names = set(file.keys())
            if names != set(wanted):
                missing, extra = sorted(set(wanted) - names), sorted(names - set(wanted))
                raise UserError(f"{path / WEIGHTS} does not fit its config: missing {missing[:5]}, extra {extra[:5]}.")
            for name, leaf in wanted.items():
                if tuple(file.get_slice(name).get_shape()) != leaf.shape:
                    raise UserError(f"{path / WEIGHTS}: {name} is not of shape {leaf.shape}.")
                arrays[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path / WEIGHTS} cannot be read: {error}.") from error
    params: dict[str, Any] = {}
    for name, array in arrays.items():
        *rooms, last = name.split("/")
        node = params
        for room in rooms:
            node = node.setdefault(room, {})
        node[last] = array
    return LanguageModel(config, params, load_tokenizer(path))


def save(lm: LanguageModel, directory: str | Path, *, dtype: str = "float32") -> Path:
    """Write config.json, params.safetensors and the tokenizer; whole or not at all. Replaces only a model of ours."""
    from safetensors.numpy import save_file

    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; choose float32 or bfloat16.")
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir() if directory.is_dir() else [directory]):
        config_file = directory / "config.json"
        if not config_file.is_file() or _read_json(config_file).get("format") != FORMAT:
            raise UserError(f"{directory} holds something that is not a saved slmjax model: choose another directory.")
    flat = {
        path_string(p): np.ascontiguousarray(np.asarray(leaf).astype(jnp.dtype(dtype)))
        for p, leaf in jax.tree_util.tree_leaves_with_path(lm.params)
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        lm.tokenizer.save(partial)
        save_file(flat, partial / WEIGHTS)
        description = {"format": FORMAT, "version": 1, "model": lm.config.to_dict()}
        (partial / "config.json").write_text(json.dumps(description, indent=1) + "\n")
        partial.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory
