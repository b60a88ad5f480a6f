"""The training loop: one straight function from a recipe to finished checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError, one_line
from slmjax.files import local_path
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.interrupts import StopRequest
from slmjax.training.memory import explain_out_of_memory
from slmjax.training.program import to_devices
from slmjax.training.recipe import End, Evaluation, Recipe, TrainResult
from slmjax.training.reporting.journal import Journal
from slmjax.training.run_directory import claim, refuse_another
from slmjax.training.state import TrainState, without
from slmjax.training.workdir_lock import hold

CHECKPOINTS = "checkpoints"


def train(recipe: Recipe, workdir: str | Path, *, say: Callable[[str], None] | None = None) -> TrainResult:
    """Run a recipe until its budget is spent, continuing whatever the workdir already holds.

    Everything goes under `workdir`: config.json, checkpoints/, metrics.jsonl, tensorboard/, and what the recipe and its
    observers write. Every process of a multi-process run calls this with the same recipe.

    Raises:
        UserError: the workdir holds another run or is in use, memory or disk run out, too many steps in a row are
            skipped, or an observer fails; what was trained until then is saved.
    """
    workdir = local_path(workdir, "The workdir")
    with hold(workdir):
        return _train(recipe, workdir, say)


def _train(recipe: Recipe, workdir: Path, say: Callable[[str], None] | None) -> TrainResult:
    refuse_another(workdir, recipe.record)
    program, training, observers = recipe.program, recipe.training, recipe.observers
    checkpointer = Checkpointer(workdir / CHECKPOINTS, recipe.checkpoint)
    begun = _begin(recipe, checkpointer)
    state, step, total = begun.state, begun.step, recipe.budget.total_steps
    with (
        Journal(recipe, workdir, step, begun.unobserved, say) as journal,
        StopRequest() as stop,
        explain_out_of_memory(program.footprint),  # a step's error comes when its metrics are read
        _closing(checkpointer),
    ):
        journal.say(recipe.description)
        if begun.message:
            journal.say(begun.message)
        steps = program.compile() if step < total and not _verdict(recipe) else {}
        # Only now, so that a mistake, or a batch too large, can be corrected in the same workdir.
        claim(workdir, recipe.record)
        recipe.write_files(workdir)
        failure: UserError | None = None
        if begun.unobserved or (steps and step == 0 and recipe.evaluate_first):
            _, failure = _observe(recipe, step, state, journal)
        elif not steps:
            journal.recall()
        if failure is not None:
            raise failure
        pending: Mapping[str, jax.Array] | None = None  # metrics of the step that is still running
        while step < total and not _verdict(recipe):
            journal.profile(step, state)
            with journal.waiting():
                kind, batch = recipe.batches.next(state)
                batch = to_devices(batch, program.kinds[kind].batch)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = steps[kind](state, batch)
            # The host reads the metrics of the step before while the device works on this one.
            _report(recipe, step, pending, journal, checkpointer)
            pending, step = metrics, step + 1

            stopping = stop.wanted(step)
            due = step == total or (training.eval_every and step % training.eval_every == 0)
            saving = stopping or step == total or step % recipe.checkpoint.every == 0
            if not (due or saving):
                continue
            _report(recipe, step, pending, journal, checkpointer)
            pending = None
            before, values = _positions(recipe), dict[str, float]()
            observing = due and (not stopping or step == total or any(observer.essential for observer in observers))
            if observing:
                values, failure = _observe(recipe, step, state, journal)
            if saving or failure is not None or _verdict(recipe) or any(observer.keep for observer in observers):
                # Who continues makes up for an evaluation that a signal or a failure left out.
                missed = bool(due and (failure is not None or not observing))
                position = {"batches": recipe.batches.position(), "unobserved": missed}
                position["observers"] = before if missed else _positions(recipe)
                stored, config = without(state, program.rebuilt), recipe.record.config
                checkpointer.save(step, stored, position=position, run_config=config, metrics=values)
            if failure is not None:
                raise failure
            journal.restart(step)
            if stopping:
                break
        checkpointer.wait()
        complete = step == total or bool(_verdict(recipe))
        end = End(step, complete, journal.latest, journal.say)
        reports = {observer.name: report for observer in observers if (report := observer.finish(end)) is not None}
        if stop.signal is not None and not complete:
            name = signal.Signals(stop.signal).name
            journal.say(f"{name}: saved step {step} of {total} in {workdir}; the same command continues from there.")
    return TrainResult(step, total, journal.latest, None if complete else stop.signal, reports)


@dataclass(frozen=True)
class _Begun:
    """Where a call of `train` takes up its run."""

    step: int
    state: TrainState
    unobserved: bool = False  # an evaluation was due at this step and did not happen
    message: str = ""


def _begin(recipe: Recipe, checkpointer: Checkpointer) -> _Begun:
    """The newest checkpoint of the run, or that of the run which it branches from, or a fresh state."""
    restored = checkpointer.restore_latest(recipe.program.stored)
    if restored is not None:
        recipe.batches.seek(restored.position["batches"])
        for observer in recipe.observers:
            if observer.name in restored.position["observers"]:
                observer.seek(restored.position["observers"][observer.name])
        message = f"Continuing after step {restored.step} of {recipe.budget.total_steps}."
        if restored.step > recipe.budget.total_steps:
            message = f"The run has {restored.step} steps, more than its budget of {recipe.budget.total_steps}."
        unobserved = bool(restored.position.get("unobserved"))
        return _Begun(restored.step, recipe.resume(restored.state), unobserved, message)
    if recipe.branch is not None:
        restored, message = recipe.branch()
        recipe.batches.seek(restored.position["batches"])
        return _Begun(restored.step, recipe.resume(restored.state), message=message)
    return _Begun(0, recipe.start())


def _positions(recipe: Recipe) -> dict[str, Any]:
    """What each observer remembers, by its name."""
    return {observer.name: observer.position() for observer in recipe.observers}


def _verdict(recipe: Recipe) -> str:
    """Why an observer wants the run to end; "" where none does."""
    return next((observer.verdict for observer in recipe.observers if observer.verdict), "")


def _observe(
    recipe: Recipe, step: int, state: TrainState, journal: Journal
) -> tuple[dict[str, float], UserError | None]:
    """Let each observer measure, and log the numbers. An observer's failure is returned, so that the run is saved."""
    remarks: list[str] = []
    evaluation = Evaluation(step, state, step == recipe.budget.total_steps, {}, remarks.append)
    for observer in recipe.observers:
        try:
            evaluation.values.update(observer.measure(evaluation))
        except Exception as error:
            kept = "the run is saved and continues from there" if step else "nothing is trained yet, and the run begins"
            failure = UserError(
                f"The observer {observer.name!r} failed after step {step}: {one_line(error).rstrip('.')}; {kept} once "
                "that is mended."
            )
            failure.__cause__ = error
            return evaluation.values, failure
        evaluation.final |= bool(observer.verdict)
    journal.evaluation(step, evaluation.values, remarks)
    return evaluation.values, None


def _report(
    recipe: Recipe,
    step: int,
    metrics: Mapping[str, jax.Array] | None,
    journal: Journal,
    checkpointer: Checkpointer,
) -> None:
    """Report a finished step, and stop the run when too many steps in a row were skipped."""
    if metrics is None:
        return
    values = journal.report(step, metrics)
    # A run that is shorter than that, and of which nothing was accepted, has trained nothing.
    if values["skipped_in_a_row"] >= min(recipe.training.max_skipped, recipe.budget.total_steps):
        checkpointer.wait()  # the newest may still be on its way to the disk
        good = checkpointer.latest_step()
        raise UserError(
            f"{int(values['skipped_in_a_row'])} steps in a row were skipped up to step {step}: the loss or gradient "
            f"was not finite, or its norm above {recipe.training.spike_factor:g} times its mean; "
            + (f"the last good checkpoint is step {good}" if good is not None else "no checkpoint was saved yet")
            + f": lower schedule.peak (the learning rate was {values['learning_rate']:g}), lengthen the warmup, or "
            "look at the data there."
        )


class _closing(AbstractContextManager):  # noqa: N801  used as a function, as contextlib.closing is
    """`contextlib.closing` that does not hide the body's error behind one of close()."""

    def __init__(self, thing: Any):
        self._thing = thing

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            self._thing.close()
        except UserError:
            if kind is None:
                raise
