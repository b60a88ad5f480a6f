"""Everything that a run says while it goes on: metrics, the progress bar, messages, a profiler's trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.training.recipe import Recipe
from slmjax.training.reporting.meter import Meter
from slmjax.training.reporting.metrics import FILE_NAME, MetricsWriter, read_metrics
from slmjax.training.reporting.progress import Progress

PROFILED_STEPS = 3
EVALUATION = "validation"  # the split of an evaluation's line


class Journal:
    """Use as a context manager. `latest` holds the numbers of the last reported step and the last evaluation."""

    def __init__(
        self,
        recipe: Recipe,
        workdir: Path,
        start: int,
        unobserved: bool = False,
        say: Callable[[str], None] | None = None,
    ):
        """Lines of steps after `start`, which a killed run left behind, are dropped.

        unobserved: the evaluation after `start` is still to come, so its line is dropped too.
        """
        self._training, self._budget, self._workdir = recipe.training, recipe.budget, workdir
        self._start = start
        self._progress = Progress(recipe.budget.total_steps, start)
        self._writer = MetricsWriter(workdir, keep_up_to=start or None, unobserved=unobserved)
        self._meter = Meter(recipe.budget, recipe.program.mesh)
        self._profiling = False
        self._say = say or (self._progress.say if jax.process_index() == 0 else lambda message: None)
        self.latest: dict[str, float] = {}

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._profiling:
            jax.profiler.stop_trace()  # the run ended within the profiled steps
        self._progress.close()
        try:
            self._writer.close()
        except UserError:
            if kind is None:  # else it would hide the error that ended the run
                raise

    def say(self, message: str) -> None:
        """Print a line without tearing the progress bar."""
        self._say(message)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as time spent waiting for data."""
        begin = time.perf_counter()
        yield
        self._meter.waited(time.perf_counter() - begin)

    def report(self, step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Read the metrics of finished step `step`, which waits for it; show and log them."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        rates = self._meter.rates(step)
        rate = rates.get("tokens_per_second", 0.0)
        self._progress.update(step, loss=values["loss"], tokens_per_second=rate, mfu=rates.get("mfu"))
        values |= rates
        if step % self._training.log_every == 0 or step in (1, self._budget.total_steps):
            values |= self._meter.totals(step)
            self._writer.write(step, values)
            self._meter.restart(step)
        self.latest = values
        return values

    def evaluation(self, step: int, values: Mapping[str, float], remarks: list[str]) -> None:
        """Log and tell what the observers measured, then their remarks."""
        self.latest = self.latest | dict(values)
        if values:
            # Readers of the file find an evaluation's loss under the same name as a step's.
            loss = {"loss": values["validation_loss"]} if "validation_loss" in values else {}
            line = {**values, **loss, "tokens": step * self._budget.tokens_per_step}
            # Who is killed after making up for an evaluation makes up for it again.
            if step != self._start or all(line["step"] != step for line in self._evaluations()):
                self._writer.write(step, line, split=EVALUATION)
            self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        for remark in remarks:
            self.say(remark)

    def recall(self) -> None:
        """Take the last evaluation from the metrics of a run that has nothing left to do."""
        if lines := self._evaluations():
            apart = ("step", "split", "loss", "tokens")
            self.latest = {name: value for name, value in lines[-1].items() if name not in apart}

    def _evaluations(self) -> list[dict[str, Any]]:
        path = self._workdir / FILE_NAME
        return [line for line in read_metrics(path) if line.get("split") == EVALUATION] if path.is_file() else []

    def restart(self, step: int) -> None:
        """Leave evaluation and saving out of the next rate."""
        self._meter.restart(step)

    def profile(self, step: int, state: Any) -> None:
        """Begin a profiler's trace before `training.profile_at`, and end it a few steps later."""
        if step == self._training.profile_at:
            jax.profiler.start_trace(str(self._workdir / "profile"))
            self._profiling = True
        elif self._profiling and step == self._training.profile_at + PROFILED_STEPS:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._profiling = False
            self.say(f"The profiler's trace of {PROFILED_STEPS} steps is in {self._workdir / 'profile'}.")
