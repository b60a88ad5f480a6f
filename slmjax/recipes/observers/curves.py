"""The picture of a run: its loss over the tokens."""

from __future__ import annotations

from pathlib import Path

from slmjax.recipes.observers.plots import plot_loss
from slmjax.training.processes import is_primary
from slmjax.training.recipe import End, Evaluation, Watching
from slmjax.training.reporting.metrics import FILE_NAME as METRICS
from slmjax.training.reporting.metrics import read_metrics


class LossCurve(Watching):
    """Draws WORKDIR/loss.png whenever a run ends or is stopped."""

    name = "loss_curve"

    def __init__(self, workdir: Path):
        """`workdir`: where the metrics are and the picture goes."""
        self._workdir = workdir

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Nothing of its own."""
        del evaluation
        return {}

    def finish(self, end: End) -> None:
        """Draw what was logged."""
        if not is_primary() or not end.step or not (self._workdir / METRICS).is_file():
            return
        lines = read_metrics(self._workdir / METRICS)
        if any(line.get("split") == "train" and line.get("loss") is not None for line in lines):  # else all were NaN
            plot_loss(self._workdir / METRICS, self._workdir / "loss.png", title=self._workdir.resolve().name)
