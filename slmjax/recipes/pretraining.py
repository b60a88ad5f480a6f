"""Pretraining and over-training: next-token prediction on text, from random parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.files import place_directory
from slmjax.inference.description import Description
from slmjax.models.counting import count_parameters
from slmjax.recipes.branching import restore_branch
from slmjax.recipes.check import NEEDS_VALIDATION, check
from slmjax.recipes.config import RunConfig
from slmjax.recipes.corpus import Corpus, check_vocabulary, open_corpus
from slmjax.recipes.finetuned import describe_run
from slmjax.recipes.identity import ENDLESS, begun_in, record, with_begun_warmup
from slmjax.recipes.language_model import ModelProgram, budget_of, build
from slmjax.recipes.observers.curves import LossCurve
from slmjax.recipes.observers.early_stopping import EarlyStopping
from slmjax.recipes.observers.losses import Losses
from slmjax.recipes.observers.samples import Samples
from slmjax.recipes.observers.tasks import WatchedTasks, task_scores
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.processes import is_primary, warn
from slmjax.training.program import TRAIN
from slmjax.training.recipe import Observer, Position, Recipe
from slmjax.training.reporting.scaling_laws import chinchilla_report
from slmjax.training.run_directory import refuse_another
from slmjax.training.state import TrainState


def pretraining(config: RunConfig, workdir: Path, watched: WatchedTasks | None = None) -> Recipe:
    """The recipe of a config without a base. Prepares the corpus under `workdir` where it is not prepared yet.

    watched: the tasks that it is scored on.
    """
    check(config)
    refuse_another(workdir, record(config))
    begun = begun_in(workdir)
    corpus = open_corpus(config.data, workdir / "data", progress=is_primary(), begun=begun)
    config = settle(config, corpus, begun)
    lm = build(config, token_bytes=corpus.tokenizer.token_bytes())
    return text_recipe(
        lm,
        corpus,
        workdir,
        batches=TextBatches(corpus.batches(config, lm.rows), corpus.digest(), config.data.on_change),
        observers=text_observers(lm, corpus, workdir, scores=task_scores(watched, lm, corpus.tokenizer, workdir)),
        start=lm.program.initialize,
        description=f"{_size(config):,} parameters on {run_length(lm, corpus)}\n{_scaling(config)}",
    )


class TextBatches:
    """The batches of a resumable iterator over text, which do not depend on the state."""

    def __init__(self, iterator: Any, data: str = "", on_change: str = "error"):
        """`iterator`: with `get_state` and `set_state`, over batches of this process's rows.

        data: a digest of what the batches are made of. on_change: whether to "use" other data than a position is of.
        """
        self._iterator, self._data, self._on_change = iterator, data, on_change

    def next(self, state: TrainState) -> tuple[str, Mapping[str, np.ndarray]]:
        """The next batch."""
        del state
        return TRAIN, next(self._iterator)

    def position(self) -> Position:
        """The number of the next batch, as the iterator writes it, and which data it is of."""
        return dict(self._iterator.get_state()) | ({"data": self._data} if self._data else {})

    def seek(self, position: Position) -> None:
        """Jump there at once. UserError where the position is one in other data."""
        place = dict(position)
        if place.pop("data", self._data) != self._data:
            if self._on_change == "error":
                raise UserError(
                    "The data are not those that the checkpoint was trained on: bring them back, or go on with them as "
                    "they are by data.on_change=use."
                )
            warn("the data are not those that the checkpoint was trained on; the run goes on with them as they are.")
        self._iterator.set_state(place)


def settle(config: RunConfig, corpus: Corpus, begun: Path | None = None) -> RunConfig:
    """The config with what only the data, or a run that goes on, decide: the steps of a budget in epochs, the warmup.

    begun: the workdir of a run that has a checkpoint. UserError where the data do not fit.
    """
    check_vocabulary(corpus, config.model.vocab_size)
    if config.training.early_stopping and not corpus.validation:
        raise UserError(f"training.early_stopping={config.training.early_stopping} {NEEDS_VALIDATION}")
    keep = config.checkpoint
    if keep.keep_best and keep.best_metric.startswith("validation_") and not corpus.validation:
        raise UserError(f"checkpoint.best_metric={keep.best_metric} {NEEDS_VALIDATION}")
    if config.training.epochs:
        config = dataclasses.replace(
            config, rows_per_epoch=corpus.rows_per_epoch(config.data, config.forgetting.replay)
        )
        before = None if begun is None else Description.read(begun).total_steps
        if before not in (None, config.total_steps) and config.schedule.name not in ENDLESS:
            raise UserError(
                f"training.epochs={config.training.epochs:g} are {config.total_steps} steps of the data as they are, "
                f"and the learning rate was laid out for {before}: bring the data back, or begin another run "
                f"from its weights (training.branch_from={begun})."
            )
    return with_begun_warmup(config, begun)


def text_observers(
    lm: ModelProgram,
    corpus: Corpus,
    workdir: Path,
    more: Sequence[Observer] = (),
    scores: Sequence[Observer] = (),
) -> list[Any]:
    """The observers of every training on text.

    more: stand between the losses and what looks at them. scores: of tasks, which a verdict to end must precede.
    """
    t = lm.config.training
    observers: list[Any] = []
    if corpus.validation:
        observers.append(Losses(lm, lambda: corpus.validation_batches(lm.config, lm.rows)))
    observers += more
    if t.early_stopping:
        observers.append(EarlyStopping(t.early_stopping, t.early_stopping_delta, workdir))
    if t.samples or t.sample_prompts:
        observers.append(Samples(lm, corpus, workdir))
    return [*observers, *scores, LossCurve(workdir)]


def text_recipe(lm: ModelProgram, corpus: Corpus, workdir: Path, **parts: Any) -> Recipe:
    """A recipe over text from its parts, with what is the same for all of them."""
    config = lm.config
    stop_ids, generation = parts.pop("stop_ids", ()), parts.pop("generation", None)

    def write_files(workdir: Path) -> None:
        if is_primary():
            # The model must be usable when the corpus is gone. What a run has is left where it is: a kill could come
            # between moving it away and putting the same in its place.
            if begun_in(workdir) is None or not (workdir / "tokenizer").is_dir():
                with place_directory(workdir / "tokenizer") as partial:
                    corpus.tokenizer.save(partial)
            describe_run(config, stop_ids, workdir, generation).write(workdir)

    branch = (lambda: restore_branch(config, lm.program)) if config.training.branch_from else None
    defaults: dict[str, Any] = {"budget": budget_of(config), "branch": branch, "write_files": write_files}
    return Recipe(
        program=lm.program,
        training=config.training,
        checkpoint=_keeping(config),
        record=record(config),
        **(defaults | parts),
    )


def run_length(lm: ModelProgram, corpus: Corpus) -> str:
    """A line on where a run takes place, how long it is, and how often its data repeat."""
    config, mesh = lm.config, lm.program.mesh
    axes = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items() if size > 1) or "1 device"
    num_rows = config.total_steps * config.training.batch_size
    passes = corpus.passes(config.data, num_rows, config.forgetting.replay)
    often = ", ".join(f"{name} {count:.2f}" if len(passes) > 1 else f"{count:.2f}" for name, count in passes.items())
    return (
        f"{axes} ({mesh.devices.flat[0].device_kind}); {config.total_steps:,} steps of {config.tokens_per_step:,} "
        f"tokens; passes over the data: {often}."
    )


def _size(config: RunConfig) -> int:
    return count_parameters(config.model).total


def _scaling(config: RunConfig) -> str:
    return str(chinchilla_report(_size(config), config.total_steps * config.tokens_per_step))


def _keeping(config: RunConfig) -> CheckpointConfig:
    """With early stopping the best checkpoint is kept."""
    keep = config.checkpoint
    if not config.training.early_stopping:
        return keep
    return dataclasses.replace(keep, keep_best=max(1, keep.keep_best), best_metric="validation_loss")
