"""The training loop: one straight function from config to finished checkpoints."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from slmjax.data.pipeline import Interleaved
from slmjax.errors import UserError
from slmjax.files import local_path, place_directory
from slmjax.models.counting import count_parameters
from slmjax.peft.fingerprint import fingerprint
from slmjax.recipes.corpus import check_vocabulary, open_corpus, open_general
from slmjax.recipes.finetuned import expanded
from slmjax.recipes.fisher import with_fisher
from slmjax.recipes.observers import forgetting
from slmjax.recipes.observers.early_stopping import EarlyStopping
from slmjax.recipes.observers.losses import evaluate
from slmjax.recipes.observers.samples import Sampler
from slmjax.tokenization.tokenizer import STOP_IDS, Tokenizer
from slmjax.training.branching import rates_there, restore_branch
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.config import RunConfig
from slmjax.training.interrupts import StopRequest
from slmjax.training.memory import out_of_memory_is_the_users
from slmjax.training.program import Program, build, local_rows, to_devices
from slmjax.training.reporting.meter import Meter
from slmjax.training.reporting.metrics import FILE_NAME as METRICS
from slmjax.training.reporting.metrics import MetricsWriter, chinchilla_report, read_metrics
from slmjax.training.reporting.progress import Progress
from slmjax.training.run_directory import claim, refuse_another
from slmjax.training.state import without_base

CHECKPOINTS = "checkpoints"
PROFILED_STEPS = 3
EARLY_STOPPING = "early_stopping"  # in a checkpoint's data, beside the position


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended. `stopped_by` is the signal that stopped it early, or None.

    forgetting: what a fine-tune gained and forgot (`forgetting.report`), once the run has ended. best_step: that of the
    lowest validation loss, with early stopping.
    """

    step: int
    total_steps: int
    metrics: dict[str, float]
    stopped_by: int | None
    forgetting: dict[str, Any] | None = None
    best_step: int | None = None


def train(
    config: RunConfig,
    workdir: str | Path,
    *,
    base: Any = None,
    tokenizer: Tokenizer | None = None,
    stop_ids: Sequence[int] = (),
    tasks: Mapping[str, forgetting.Task] | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train until the budget is spent, continuing whatever the workdir already holds.

    base: the parameters that are fine-tuned (of `config.peft.base`); they are used up. None: random ones.
    tokenizer, stop_ids: those of the base, for conversations; the run's model ends its answers where its base does.
    tasks: scores by name, measured before and after beside the losses; see `forgetting.Task`.

    Everything goes under `workdir`: config.json, data/, checkpoints/, metrics.jsonl, tensorboard/, loss.png, of a
    fine-tune forgetting.json and forgetting.png, of samples samples.jsonl. Every process of a multi-process run calls
    this with the same config.
    """
    workdir = local_path(workdir, "The workdir")
    if base is not None:
        config = dataclasses.replace(config, peft=dataclasses.replace(config.peft, fingerprint=fingerprint(base)))
        config, base = expanded(config, base)
    elif config.peft.method != "full":
        raise UserError(f"peft.method={config.peft.method} needs a model to start from: set peft.base to its path.")
    elif config.forgetting.strengths:
        on = ", ".join(f"forgetting.{name}" for name in config.forgetting.strengths)
        raise UserError(f"{on} hold a network to the one that it began as: set peft.base to its path.")
    if config.data.sequence_length > config.model.context_length:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} is longer than the model's context, "
            f"model.context_length={config.model.context_length}: shorten it."
        )
    refuse_another(workdir, config)
    corpus = open_corpus(config.data, workdir / "data", tokenizer=tokenizer, progress=jax.process_index() == 0)
    check_vocabulary(corpus, config.model.vocab_size)
    tokenizer = corpus.tokenizer
    if stop_ids:
        tokenizer.settings[STOP_IDS] = list(stop_ids)
    stopper = EarlyStopping(config.training.early_stopping, config.training.early_stopping_delta)
    if stopper.patience and not corpus.validation:
        raise UserError("training.early_stopping looks at a validation split, and there is none: hold some data out.")
    program = build(config, token_bytes=tokenizer.token_bytes(), base=base, encode=tokenizer.encode)
    rows = local_rows(program.batch_sharding, config.training.batch_size)
    held = config.forgetting
    general, replay, measured_rows = None, None, None
    measuring = base is not None and forgetting.measured(config)
    if measuring or held.replay or held.ewc:
        general = open_general(config, workdir / "data" / "general", tokenizer, progress=jax.process_index() == 0)
        measured_rows = general.measured_rows(config.data.sequence_length, held.tokens) if measuring else None
        mark = "kl_weights" if held.general_rows_are_held else None
        replay = Interleaved(general.train, held.replay, mark) if held.replay else None
    batches = corpus.batches(config, rows, replay)

    keeping = config.checkpoint
    if stopper.patience:
        keeping = dataclasses.replace(keeping, keep_best=max(1, keeping.keep_best), best_metric="validation_loss")
    checkpointer = Checkpointer(workdir / CHECKPOINTS, keeping)
    restored = checkpointer.restore_latest(without_base(program.state))
    branching = restored is None and bool(config.training.branch_from)
    if branching:
        restored = restore_branch(program, CHECKPOINTS)
    if restored is None:
        start, state = 0, program.initialize(base)
        if general is not None and held.ewc:
            state = with_fisher(program, state, general.estimation_rows(config.data.sequence_length, held.fisher_rows))
    else:
        start, state = restored.step, program.with_base(restored.state, base)
        position = dict(restored.data_state)
        stopped_early = position.pop(EARLY_STOPPING, None)
        batches.set_state(position)
        stopper.restore(None if branching else stopped_early)

    total = config.total_steps
    primary = jax.process_index() == 0
    with (
        Progress(total, start) as progress,
        StopRequest() as stop,
        out_of_memory_is_the_users(config, program.mesh),  # a step's comes when its metrics are read
        _Closing(MetricsWriter(workdir, resume_step=start or -1)) as writer,
        _Closing(checkpointer),
    ):
        say = say or (progress.say if primary else lambda message: None)
        say(f"{_describe(program)}")
        if restored is not None:
            say(f"Continuing after step {start}{rates_there(program, restored) if branching else f' of {total}'}.")
        step_fn = program.compile() if start < total and not stopper.finished else None
        sampler = Sampler(program, corpus, workdir, resume_step=start or -1)
        # Only now, so that a mistyped path, mesh or batch, or one too large, can be corrected in the same workdir.
        claim(workdir, config)
        if primary:
            with place_directory(workdir / "tokenizer", lambda: False) as partial:
                corpus.tokenizer.save(partial)  # the model must be usable when the corpus is gone
        meter = Meter(program)
        pending: Any = None  # metrics of the step that is still running
        latest: dict[str, float] = {}
        step, profiling = start, False
        if step_fn is None:  # nothing is left to do but to say where the run ended
            latest = _last_evaluation(workdir)
        if measuring and start == 0 and step_fn is not None:
            first = evaluate(program, state, corpus, rows, measured_rows, of_base=True)
            writer.write(0, first | forgetting.scores(tasks or {}, program, state) | _point(first, 0), "validation")
            say(f"step 0: {_listed(first)}")
            sampler.sample(0, state, say)
        while step < total and not stopper.finished:
            if step == config.training.profile_at:
                jax.profiler.start_trace(str(workdir / "profile"))
                profiling = True
            waiting = time.perf_counter()
            batch = to_devices(next(batches), program)
            meter.waited(time.perf_counter() - waiting)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                assert step_fn is not None
                state, metrics = step_fn(state, batch)
            # The host reads the metrics of the step before while the device works on this one.
            if pending is not None:
                latest = _finish(step, pending, meter, writer, progress, config, checkpointer)
            pending, step = metrics, step + 1
            if profiling and step == config.training.profile_at + PROFILED_STEPS:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                profiling = False
                say(f"The profiler's trace of {PROFILED_STEPS} steps is in {workdir / 'profile'}.")

            stopping = stop.wanted(step)
            last = stopping or step == total
            due = step == total or (config.training.eval_every and step % config.training.eval_every == 0)
            # Where evaluations decide when the run ends, a signal must not make it miss one.
            evaluating = due and (not stopping or stopper.patience)
            saving = last or step % config.checkpoint.every == 0
            if not (evaluating or saving):
                continue
            latest = _finish(step, pending, meter, writer, progress, config, checkpointer)
            pending = None
            evaluation: dict[str, float] = {}
            if evaluating and (corpus.validation or measured_rows):
                evaluation = evaluate(program, state, corpus, rows, measured_rows)
                if corpus.validation and stopper.see(step, evaluation["validation_loss"]) and stopper.patience:
                    saving = True  # the best is kept
                saving = saving or stopper.finished
                if measuring and (step == total or stopper.finished):
                    evaluation |= forgetting.scores(tasks or {}, program, state)
                latest |= evaluation
                point = _point(evaluation, step * config.tokens_per_step)
                writer.write(step, evaluation | point, split="validation")
                say(f"step {step}: {_listed(evaluation)}")
                sampler.sample(step, state, say)
            if saving:
                early = {EARLY_STOPPING: stopper.state()} if stopper.patience else {}
                checkpointer.save(
                    step,
                    without_base(state),
                    data_state=batches.get_state() | early,
                    run_config=config.to_dict(),
                    metrics=evaluation,
                )
            meter.restart(step)
            if stopping:
                break
        if profiling:
            jax.profiler.stop_trace()  # the run ended within the profiled steps
        checkpointer.wait()
        if primary and step > start:
            from slmjax.training.reporting.plots import plot_loss

            plot_loss(workdir / METRICS, workdir / "loss.png", title=workdir.name)
        ended = step == total or stopper.finished
        report = forgetting.report(config, step, forgetting.before(workdir), latest) if measuring and ended else None
        if report is not None and step > start:
            forgetting.write(workdir, report)
        if stopper.finished:
            say(str(stopper))
        if stopper.best_step is not None and stopper.patience and ended:
            say(f"Best: step {stopper.best_step}, in {workdir / CHECKPOINTS / str(stopper.best_step)}.")
        if stop.signal is not None and not ended:
            name = signal.Signals(stop.signal).name
            say(f"{name}: saved step {step} of {total} in {workdir}; the same command goes on from there.")
    best_step = stopper.best_step if stopper.patience else None
    return TrainResult(step, total, latest, stop.signal if not ended else None, report, best_step)


def _finish(step, pending, meter, writer, progress, config, checkpointer) -> dict[str, float]:
    """Read a finished step's metrics, report them, and stop the run when too many steps in a row were skipped."""
    values = {name: float(value) for name, value in jax.device_get(pending).items()}
    rates = meter.rates(step)
    progress.update(
        step,
        loss=values["loss"],
        tokens_per_second=rates.get("tokens_per_second", 0.0),
        mfu=rates.get("mfu"),
    )
    values |= rates
    if step % config.training.log_every == 0 or step in (1, config.total_steps):
        values |= meter.totals(step)
        writer.write(step, values)
        meter.restart(step)
    if values["skipped_in_a_row"] >= config.training.max_skipped:
        checkpointer.wait()  # the newest may still be on its way to the disk
        good = checkpointer.latest_step()
        raise UserError(
            f"{int(values['skipped_in_a_row'])} steps in a row were skipped up to step {step}: the loss or gradient "
            f"was not finite, or its norm above {config.training.spike_factor:g} times its mean; "
            + (f"the last good checkpoint is step {good}" if good is not None else "no checkpoint was saved yet")
            + f": lower schedule.peak (now {config.schedule.peak:g}), lengthen the warmup, or look at the data there."
        )
    return values


def _point(evaluation: dict[str, float], tokens: int) -> dict[str, float]:
    """What the loss curve reads of an evaluation."""
    loss = {"loss": evaluation["validation_loss"]} if "validation_loss" in evaluation else {}
    return loss | {"tokens": tokens}


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def _last_evaluation(workdir: Path) -> dict[str, float]:
    """What a finished run wrote down of its last evaluation; empty where its metrics are gone."""
    path = workdir / METRICS
    lines = [line for line in read_metrics(path) if line.get("split") == "validation"] if path.is_file() else []
    return (
        {k: v for k, v in lines[-1].items() if k.startswith(("validation_", "general_", forgetting.TASK))}
        if lines
        else {}
    )


def _describe(program: Program) -> str:
    config = program.config
    count = count_parameters(config.model)
    mesh = " x ".join(f"{size} {axis}" for axis, size in program.mesh.shape.items() if size > 1) or "1 device"
    kind = program.mesh.devices.flat[0].device_kind
    tokens = config.total_steps * config.tokens_per_step
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    if config.peft.base:
        return (
            f"{trained:,} trained parameters ({config.peft.method}) on {count.total:,} of {config.peft.base}, "
            f"{mesh} ({kind}); {config.total_steps:,} steps of {config.tokens_per_step:,} tokens."
        )
    return (
        f"{count.total:,} parameters on {mesh} ({kind}); {config.total_steps:,} steps of {config.tokens_per_step:,} "
        f"tokens.\n{chinchilla_report(count.total, tokens)}"
    )


class _Closing:
    """`contextlib.closing` that does not hide the body's error behind one of close()."""

    def __init__(self, thing: Any):
        self._thing = thing

    def __enter__(self) -> Any:
        return self._thing

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            self._thing.close()
        except UserError:
            if kind is None:
                raise
