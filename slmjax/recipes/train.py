"""The front door of training: from a config to a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.recipes.check import check
from slmjax.recipes.config import RunConfig, run_config
from slmjax.recipes.finetuning import finetuning
from slmjax.recipes.observers.forgetting import Task
from slmjax.recipes.observers.tasks import open_tasks
from slmjax.recipes.pretraining import pretraining
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.training import loop
from slmjax.training.recipe import Recipe, TrainResult
from slmjax.training.workdir_lock import hold


def train(
    config: RunConfig | ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    base: Any = None,
    tokenizer: Tokenizer | None = None,
    stop_ids: Sequence[int] = (),
    generation: Mapping[str, Any] | None = None,
    tasks: Mapping[str, Task] | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train until the budget is spent, continuing whatever the workdir already holds.

    Everything goes under `workdir`: config.json, slmjax.json, tokenizer/, data/, checkpoints/, metrics.jsonl,
    tensorboard/, loss.png, of a fine-tune forgetting.json and forgetting.png, of samples samples.jsonl, of tasks
    tasks.png. Every process
    of a multi-process run calls this with the same config.

    Args:
        config: what `default_config` makes, changed; or a typed `RunConfig`.
        workdir: a directory of the run's own.
        base: the parameters that are fine-tuned, which are used up; None: those at `config.peft.base`, if it is set.
        tokenizer, stop_ids, generation: those that come with `base`.
        tasks: name -> function (model program, state) -> score, more being better; measured before and after.
        say: takes each message instead of stderr.

    Raises:
        UserError: the config cannot work, the workdir holds another run or is in use, or the run cannot go on.
    """
    config = config if isinstance(config, RunConfig) else run_config(config)
    workdir = local_path(workdir, "The workdir")
    came: dict[str, Any] = {"tokenizer": tokenizer, "stop_ids": stop_ids, "generation": generation}
    with hold(workdir):  # before the data are prepared there
        recipe = make_recipe(config, workdir, base=base, tasks=tasks, **came)
        return loop.train(recipe, workdir, say=say)


def make_recipe(
    config: RunConfig,
    workdir: Path,
    *,
    base: Any = None,
    tokenizer: Tokenizer | None = None,
    stop_ids: Sequence[int] = (),
    generation: Mapping[str, Any] | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> Recipe:
    """The recipe that a config asks for; arguments as in `train`."""
    if base is None:
        check(config)
    watched = open_tasks(config)
    if base is None and config.peft.base:  # a large one is read once all else was found right
        base, tokenizer, stop_ids, generation = _load_base(config, workdir)
    if base is None:
        return pretraining(config, workdir, watched)
    came: dict[str, Any] = {"tokenizer": tokenizer, "stop_ids": stop_ids, "generation": generation}
    return finetuning(config, workdir, base, tasks=tasks, watched=watched, **came)


def _load_base(config: RunConfig, workdir: Path) -> tuple[Any, Tokenizer | None, Sequence[int], Mapping[str, Any]]:
    from slmjax.formats.models import load
    from slmjax.formats.recognition import kind_of
    from slmjax.formats.runs import base_places, open_run
    from slmjax.peft.fingerprint import require_same_model
    from slmjax.sharding.mesh import host_mesh

    base = config.peft.base
    if not local_path(base, "peft.base").exists() and kind_of(workdir) == "run":  # both were moved since it began
        base = next(iter(base_places(open_run(workdir))), base)
    try:
        lm = load(base, mesh=host_mesh() if config.peft.quantize else None)
    except UserError as error:
        raise UserError(f"peft.base={config.peft.base} cannot be loaded: {str(error).rstrip('.')}.") from error
    require_same_model(config.model, lm.config, config.peft.base)
    return lm.params, lm.tokenizer, lm.stop_ids, lm.generation
