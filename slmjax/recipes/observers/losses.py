"""Losses of a network at one moment, on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from slmjax.data.packing import Row, empty_row, stack_rows
from slmjax.objectives.next_token import METRIC_NAMES
from slmjax.objectives.summing import sum_losses
from slmjax.recipes.language_model import ModelProgram
from slmjax.training.program import to_devices
from slmjax.training.recipe import Evaluation, Watching
from slmjax.training.state import TrainState

Step = Callable[[Any, Any, Any], Any]


class Losses(Watching):
    """The objective's metrics on some rows, each under its name behind a prefix: `validation_loss` (nats per token)."""

    def __init__(
        self,
        lm: ModelProgram,
        batches: Callable[[], Iterable[Row]],
        *,
        prefix: str = "validation_",
        metrics: tuple[str, ...] = METRIC_NAMES,
    ):
        """`batches`: this process's rows of batches of the run's size, from the first each time it is called."""
        self.name = prefix.rstrip("_")
        self._lm, self._batches, self._prefix, self._metrics = lm, batches, prefix, metrics

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Losses of the averaged weights if there are any; before the first step, of the network as it began."""
        at_start = evaluation.step == 0 and self._lm.method.changes_at_start
        step = self._lm.base_eval_step if at_start else self._lm.eval_step
        values = mean_losses(self._lm, step, evaluation.state, self._batches())
        return {self._prefix + name: values[name] for name in self._metrics}


def mean_losses(lm: ModelProgram, step: Step, state: TrainState, batches: Iterable[Row]) -> dict[str, float]:
    """The objective's metrics over all batches, each weighted as in the batch."""
    params = state.params if state.ema is None else state.ema
    total = sum_losses(lambda batch: step(params, state.frozen, to_devices(batch, lm.batch)), batches)
    return {name: float(mean.over(total.weight)) for name, mean in total.metrics.items()}


def batches_of(rows: list[Row], sequence_length: int, batch_size: int, process_rows: list[int]) -> Iterator[Row]:
    """The rows in batches of the run's size, so that nothing is compiled for them; the last is filled up."""
    for first in range(0, len(rows), batch_size):
        numbers = [first + row for row in process_rows]
        yield stack_rows(rows[i] if i < len(rows) else empty_row(sequence_length) for i in numbers)
