"""Runs and their checkpoints as language models: a run's own parameters, or its fine-tune put back on its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.formats.facts import describe_finetuning, describe_tokenizer
from slmjax.formats.recognition import CHECKPOINTS, kind_of, require_kind
from slmjax.formats.weight_map import shardings_of
from slmjax.inference.description import Description
from slmjax.inference.finetuned import load_finetuned
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, abstract_leaves, unflatten
from slmjax.peft.config import MERGEABLE
from slmjax.tokenization.tokenizer import STOP_IDS, Tokenizer, load_tokenizer

_FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)  # codes of quantized weights are none
LoadBase = Callable[[str], LanguageModel]


@dataclass(frozen=True)
class Run:
    """A run, or one of its checkpoints, before any array is read."""

    directory: Path  # of the run
    description: Description
    step: int | None = None  # of the checkpoint; None: the newest that can be read

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints."""
        return self.directory / CHECKPOINTS

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, readable or not."""
        return sorted(int(path.name) for path in self.checkpoints.glob("*") if path.name.isdecimal())

    def tokenizer(self) -> Tokenizer | None:
        """The run's tokenizer, which begins texts with the bos token where the run's corpus did; None: it has none."""
        directory = self.directory / self.description.tokenizer
        if not directory.is_dir():
            return None
        tokenizer = load_tokenizer(directory, as_saved=True)
        tokenizer.settings["add_bos_token"] = self.description.add_bos
        tokenizer.settings.pop(STOP_IDS, None)  # what runs wrote there before they had a description
        return tokenizer


def open_run(path: str | Path) -> Run:
    """The run at a path, its workdir or one of its checkpoints. UserError where it is something else."""
    place, kind = require_kind(path)
    if kind == "run":
        return Run(place, Description.read(place))
    if kind == "checkpoint":
        workdir = place.resolve().parent.parent
        return Run(workdir, Description.read(workdir), int(place.resolve().name))
    raise UserError(f"{place} is a model and not a run: give the workdir of a run, or one of its checkpoints.")


def describe_run(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """A run's network, and how far it came; no array is read."""
    run, steps = open_run(path), open_run(path).steps()
    facts: dict[str, Any] = {"kind": kind_of(path), "step": steps[-1] if steps and run.step is None else run.step}
    facts |= {"total_steps": run.description.total_steps, "checkpoints": steps, "dtype": "float32"}
    try:
        tokenizer = run.tokenizer()
    except UserError:
        tokenizer = None
    model, peft = run.description.model, run.description.peft
    return model, facts | describe_tokenizer(tokenizer) | describe_finetuning(model, peft, tokenizer)


def load_run(
    path: Path,
    load_base: LoadBase,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    merge: bool = True,
) -> LanguageModel:
    """The model of a run, averaged where it kept an average; of a fine-tune, on the base that `load_base` reads.

    mesh: to spread the parameters over; None is the first device. dtype: of the parameters, float32 when None. merge:
    work what was added into the base's weights where they can express it; else it is kept beside them.
    """
    run = open_run(path)
    described, tokenizer = run.description, run.tokenizer()
    about: dict[str, Any] = {"config": described.model, "tokenizer": tokenizer, "path": str(path)}
    if described.peft.method == "full":
        params = _cast(_restore(run, mesh), dtype)
        return LanguageModel(params=params, stop_ids=described.stop_ids, **about)
    base = load_base(described.peft.base)
    encode = None if tokenizer is None else tokenizer.encode
    tuned = load_finetuned(described, run.checkpoints, base.params, step=run.step, encode=encode)
    merged = merge and described.peft.method in MERGEABLE
    variables = {"params": tuned.merged()} if merged else tuned.variables
    return LanguageModel(
        params=_cast(variables["params"], dtype),
        stop_ids=base.stop_ids,
        peft=variables.get("peft", {}),
        options=tuned.method.options,
        **about,
    )


def _restore(run: Run, mesh: jax.sharding.Mesh | None) -> Params:
    from slmjax.training.checkpoints.checkpointer import Checkpointer

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = shardings_of(run.description.model, mesh) or {}
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings.get(path, here))
        for path, leaf in abstract_leaves(run.description.model).items()
    }
    name = "ema" if run.description.averaged else "params"
    wanted = {"params": unflatten(shapes)}
    return Checkpointer(run.checkpoints).restore_params(wanted, step=run.step, name=name)["params"]


def _cast(params: Params, dtype: str | None) -> Params:
    if dtype is None:
        return params
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype in _FLOATS else leaf, params)
