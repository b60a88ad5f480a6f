"""The training loop: one straight function from config to finished checkpoints."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.data.placement import local_path, place_directory
from slmjax.errors import UserError
from slmjax.models.counting import count_parameters, flops_per_token
from slmjax.peft.base import fingerprint
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.training.checkpoints import Checkpointer, Restored
from slmjax.training.config import RunConfig, run_config
from slmjax.training.corpus import Corpus, check_vocabulary, open_corpus
from slmjax.training.interrupts import StopRequest
from slmjax.training.memory import out_of_memory_is_the_users
from slmjax.training.metrics import FILE_NAME as METRICS
from slmjax.training.metrics import (
    MetricsWriter,
    chinchilla_report,
    device_memory_bytes,
    model_flops_utilization,
    peak_flops,
    read_metrics,
)
from slmjax.training.program import Program, build, local_rows, to_devices
from slmjax.training.progress import Progress
from slmjax.training.run_directory import claim, refuse_another
from slmjax.training.schedules import make_schedule
from slmjax.training.state import TrainState, without_base

CHECKPOINTS = "checkpoints"
PROFILED_STEPS = 3


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended. `stopped_by` is the signal that stopped it early, or None."""

    step: int
    total_steps: int
    metrics: dict[str, float]
    stopped_by: int | None


def train(
    config: RunConfig,
    workdir: str | Path,
    *,
    base: Any = None,
    tokenizer: Tokenizer | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train until the budget is spent, continuing whatever the workdir already holds.

    base: the parameters that are fine-tuned (of `config.peft.base`); they are used up. None: random ones.
    tokenizer: that of the base, for conversations.

    Everything goes under `workdir`: config.json, data/, checkpoints/, metrics.jsonl, tensorboard/, loss.png. Every
    process of a multi-process run calls this with the same config.
    """
    workdir = local_path(workdir, "The workdir")
    if base is not None:
        config = dataclasses.replace(config, peft=dataclasses.replace(config.peft, fingerprint=fingerprint(base)))
    elif config.peft.method != "full":
        raise UserError(f"peft.method={config.peft.method} needs a model to start from: set peft.base to its path.")
    refuse_another(workdir, config)
    corpus = open_corpus(config.data, workdir / "data", tokenizer=tokenizer, progress=jax.process_index() == 0)
    check_vocabulary(corpus, config.model.vocab_size)
    tokenizer = corpus.tokenizer
    program = build(config, token_bytes=tokenizer.token_bytes(), base=base, encode=tokenizer.encode)
    rows = local_rows(program.batch_sharding, config.training.batch_size)
    batches = corpus.batches(config, rows)

    checkpointer = Checkpointer(workdir / CHECKPOINTS, config.checkpoint)
    restored = checkpointer.restore_latest(without_base(program.state))
    branching = restored is None and bool(config.training.branch_from)
    if branching:
        restored = _branch(program)
    if restored is None:
        start, state = 0, program.initialize(base)
    else:
        start, state = restored.step, program.with_base(restored.state, base)
        batches.set_state(restored.data_state)

    total = config.total_steps
    primary = jax.process_index() == 0
    with (
        Progress(total, start) as progress,
        StopRequest() as stop,
        out_of_memory_is_the_users(config, program.mesh),  # a step's comes when its metrics are read
        _Closing(MetricsWriter(workdir, resume_step=start)) as writer,
        _Closing(checkpointer),
    ):
        say = say or (progress.say if primary else lambda message: None)
        say(f"{_describe(program)}")
        if restored is not None:
            say(f"Continuing after step {start}{_rates_there(program, restored) if branching else f' of {total}'}.")
        step_fn = program.compile() if start < total else None
        # Only now, so that a mistyped path, mesh or batch, or one too large, can be corrected in the same workdir.
        claim(workdir, config)
        if primary:
            with place_directory(workdir / "tokenizer", lambda: False) as partial:
                corpus.tokenizer.save(partial)  # the model must be usable when the corpus is gone
        meter = _Meter(program)
        pending: Any = None  # metrics of the step that is still running
        latest: dict[str, float] = {}
        step, profiling = start, False
        if start >= total:  # nothing is left to do but to say where the run ended
            latest = _last_evaluation(workdir)
        while step < total:
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
            evaluating = last or (config.training.eval_every and step % config.training.eval_every == 0)
            saving = last or step % config.checkpoint.every == 0
            if not (evaluating or saving):
                continue
            latest = _finish(step, pending, meter, writer, progress, config, checkpointer)
            pending = None
            evaluation: dict[str, float] = {}
            if evaluating and not stopping and corpus.validation:
                evaluation = evaluate(program, state, corpus, rows)
                latest |= evaluation
                point = {"loss": evaluation["validation_loss"], "tokens": step * config.tokens_per_step}
                writer.write(step, evaluation | point, split="validation")
                say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in evaluation.items()))
            if saving:
                checkpointer.save(
                    step,
                    without_base(state),
                    data_state=batches.get_state(),
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
            from slmjax.training.plots import plot_loss

            plot_loss(workdir / METRICS, workdir / "loss.png", title=workdir.name)
        if stop.signal is not None and step < total:
            name = signal.Signals(stop.signal).name
            say(f"{name}: saved step {step} of {total} in {workdir}; the same command goes on from there.")
    return TrainResult(step, total, latest, stop.signal if step < total else None)


def evaluate(program: Program, state: TrainState, corpus: Corpus, rows: list[int]) -> dict[str, float]:
    """Loss (nats a token), bits per byte and accuracy on the validation split, of the averaged weights if there are."""
    params = state.params if state.ema is None else state.ema
    sums = dict.fromkeys(("nll", "correct", "tokens", "bytes"), 0.0)
    for batch in corpus.validation_batches(program.config, rows):
        for name, value in jax.device_get(program.eval_step(params, state.frozen, to_devices(batch, program))).items():
            sums[name] += float(value)
    tokens = max(sums["tokens"], 1.0)
    return {
        "validation_loss": sums["nll"] / tokens,
        "validation_bits_per_byte": sums["nll"] / (np.log(2.0) * max(sums["bytes"], 1.0)),
        "validation_accuracy": sums["correct"] / tokens,
    }


class _Meter:
    """Rates between two reports, for the host's clock: tokens/s, MFU, the share of time spent waiting for data."""

    def __init__(self, program: Program):
        config = program.config
        self._tokens_per_step = config.tokens_per_step
        self._flops = flops_per_token(config.model, config.data.sequence_length)
        self._peak = peak_flops(program.mesh.devices.flat[0].device_kind)
        self._devices = program.mesh.size
        self._num_params = count_parameters(config.model).total
        self.restart(None)

    def restart(self, step: int | None) -> None:
        """Leave evaluation, saving and compilation out of the next rate."""
        self._start, self._first, self._waited = time.perf_counter(), step, 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def rates(self, step: int) -> dict[str, float]:
        """Rates since the last restart; empty until a whole step has been timed."""
        now = time.perf_counter()
        if self._first is None or step <= self._first:
            self.restart(step)
            return {}
        seconds = now - self._start
        rate = (step - self._first) * self._tokens_per_step / seconds
        rates = {"tokens_per_second": rate, "data_wait": min(1.0, self._waited / seconds)}
        if self._peak is not None:
            rates["mfu"] = model_flops_utilization(rate, self._flops, self._peak, self._devices)
        return rates

    def totals(self, step: int) -> dict[str, float]:
        tokens = step * self._tokens_per_step
        return {"tokens": tokens, "tokens_per_param": tokens / self._num_params, "memory_bytes": device_memory_bytes()}


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


def _last_evaluation(workdir: Path) -> dict[str, float]:
    """What a finished run wrote down of its last evaluation; empty where its metrics are gone."""
    path = workdir / METRICS
    lines = [line for line in read_metrics(path) if line.get("split") == "validation"] if path.is_file() else []
    return {k: v for k, v in lines[-1].items() if k.startswith("validation_")} if lines else {}


def _branch(program: Program) -> Restored:
    """The state of the other run that this one starts from."""
    t = program.config.training
    source = Checkpointer(local_path(t.branch_from, "training.branch_from") / CHECKPOINTS)
    step = source.latest_step() if t.branch_step < 0 else t.branch_step
    if step is None:
        raise UserError(f"training.branch_from={t.branch_from} has no checkpoint to start from.")
    if step >= program.config.total_steps:
        raise UserError(
            f"training.branch_from={t.branch_from} starts at step {step}, but this run ends at step "
            f"{program.config.total_steps}: raise its budget or choose an earlier training.branch_step."
        )
    return source.restore(step, without_base(program.state))


def _rates_there(program: Program, restored: Restored) -> str:
    """The learning rate on both sides of a branch: a jump there is seldom meant."""
    other = run_config(restored.run_config)
    accepted = restored.step - int(restored.state.skipped)
    before = float(make_schedule(other.schedule, other.total_steps)(accepted - 1))
    after = float(program.schedule(accepted))
    return f" of {program.config.training.branch_from}: its learning rate was {before:.4g}, here it is {after:.4g}"


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
