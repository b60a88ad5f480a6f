"""Runs and their checkpoints as language models: a run's own parameters, or its fine-tune put back on its base."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.formats.facts import describe_finetuning, describe_tokenizer
from slmjax.formats.huggingface.hub import is_hub_id
from slmjax.formats.recognition import CHECKPOINTS, kind_of, require_kind
from slmjax.formats.weight_map import cast_params, shardings_of
from slmjax.inference.description import Description
from slmjax.inference.finetuned import load_finetuned
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, abstract_leaves, unflatten
from slmjax.peft.config import MERGEABLE
from slmjax.peft.fingerprint import fingerprint
from slmjax.tokenization.tokenizer import STOP_IDS, Tokenizer, load_tokenizer

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
    if run.description.loaded == "best":
        facts["best_step"] = pick_step(run, None)
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
    base: str | None = None,
) -> LanguageModel:
    """The model of a run, averaged where it kept an average; of a fine-tune, on the base that `load_base` reads.

    mesh: to spread the parameters over; None is the first device. dtype: of the parameters, float32 when None. merge:
    work what was added into the base's weights where they can express it; else it is kept beside them. base: where the
    base is; None: where the run says.
    """
    run = open_run(path)
    described, tokenizer = run.description, run.tokenizer()
    about: dict[str, Any] = {"config": described.model, "tokenizer": tokenizer, "path": str(path)}
    if described.peft.method == "full":
        if base is not None:
            raise UserError(f"{path} has all of its weights itself, so it takes no base: leave base out.")
        params = _cast(_restore(run, mesh), dtype)
        return LanguageModel(params=params, stop_ids=described.stop_ids, generation=described.generation, **about)
    on = read_base(run, load_base, base)[0]
    encode = None if tokenizer is None else tokenizer.encode
    tuned = load_finetuned(described, run.checkpoints, on.params, step=run.step, encode=encode)
    merged = merge and described.peft.method in MERGEABLE
    variables = {"params": tuned.merged()} if merged else tuned.variables
    return LanguageModel(
        params=_cast(variables["params"], dtype),
        stop_ids=on.stop_ids,
        generation=described.generation or on.generation,
        peft=variables.get("peft", {}),
        options=tuned.method.options,
        **about,
    )


def read_base(run: Run, load_base: LoadBase, given: str | None = None) -> tuple[LanguageModel, str]:
    """The base of a fine-tune, and where it was found; given: where it is, None to look where the run says.

    A run knows its base as its config names it, by an absolute path and by one relative to its own directory. Whichever
    is there is taken, and of several the first whose parameters are those that the run began with.

    Raises:
        UserError: it is at none of these places.
    """
    if given is not None:
        return load_base(given), given
    places = base_places(run)
    for place in places:
        base = load_base(place)
        wanted = run.description.peft.fingerprint
        if place == places[-1] or not wanted or fingerprint(base.params) == wanted:
            return base, place
    named = run.description.peft.base
    raise UserError(
        f"{run.directory} was fine-tuned from {named}, which is not here: give it (--base MODEL, or base=)."
    )


def base_places(run: Run) -> list[str]:
    """The places at which a fine-tune's base may be, without those where nothing is."""
    named, places = run.description.peft.base, run.description.base_places
    here = run.directory.resolve()
    candidates = [os.path.join(here, place) for place in reversed(places)]  # an absolute one stays as it is
    candidates.append(str(local_path(named, "peft.base")))
    if not os.path.isabs(candidates[-1]):  # of a run made before its base's place was written down
        candidates += [str(above / named) for above in here.parents]
    found: dict[str, str] = {}
    for place in candidates:
        if os.path.exists(place):
            found.setdefault(os.path.realpath(place), place)
    return list(found.values()) or ([named] if is_hub_id(named) else [])


def pick_step(run: Run, wanted: str | int | None) -> int | None:
    """The step of the checkpoint to load, None for the newest that can be read.

    wanted: "best", "latest" or a step; None: what the run says of itself, the best after early stopping.
    """
    from slmjax.training.checkpoints.checkpointer import Checkpointer

    text = str(wanted if wanted is not None else run.description.loaded)
    if text == "best":
        metric = run.description.best_metric
        best = Checkpointer(run.checkpoints).best_steps(metric)
        if not best and wanted is not None:
            raise UserError(f"None of the checkpoints of {run.directory} has a {metric}: name one by its step.")
        return best[0] if best else None
    if text == "latest":
        return None
    if not text.isdecimal():
        raise UserError(f"The checkpoint {text!r} must be best, latest or the number of a step.")
    if int(text) not in run.steps():
        steps = ", ".join(map(str, run.steps())) or "none"
        raise UserError(f"There is no checkpoint of step {text} in {run.directory}: choose one of {steps}.")
    return int(text)


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
    return cast_params(params, dtype)
