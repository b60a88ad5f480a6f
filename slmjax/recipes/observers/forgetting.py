"""Gains and forgetting of a fine-tune: the same losses before and after, as a table, as JSON, as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.quantities import json_text
from slmjax.recipes.config import RunConfig
from slmjax.recipes.observers.plots import TASK, is_score, metric_of, plot_forgetting
from slmjax.training.processes import is_primary
from slmjax.training.recipe import End, Evaluation, Watching
from slmjax.training.reporting.metrics import FILE_NAME as METRICS
from slmjax.training.reporting.metrics import read_metrics

FILE_NAME = "forgetting.json"
PLOT = "forgetting.png"
# Any task: (model program, state) -> a score, more is better.
Task = Callable[[Any, Any], float]


class Tasks(Watching):
    """Scores of tasks before the first step and when the run ends."""

    name = "tasks"

    def __init__(self, lm: Any, tasks: Mapping[str, Task]):
        """`lm`: the model program that each task is given."""
        self._lm, self._tasks = lm, tasks

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """The score of each task, by its name behind `task/`."""
        if not (evaluation.final or evaluation.step == 0):
            return {}
        return {TASK + name: float(task(self._lm, evaluation.state)) for name, task in self._tasks.items()}


class Forgetting(Watching):
    """Reports the losses and scores before and after; the observers before it measure them."""

    name = "forgetting"

    def __init__(self, config: RunConfig, workdir: Path, falling: Collection[str] = ()):
        """`workdir`: where the report goes. falling: metrics of tasks of which less is better."""
        self._config, self._workdir, self._falling = config, workdir, falling

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Nothing of its own."""
        del evaluation
        return {}

    def finish(self, end: End) -> ForgettingReport | None:
        """The report of a run that has ended; writes WORKDIR/forgetting.json and WORKDIR/forgetting.png."""
        if not end.complete:
            return None
        report = compare(self._config, end.step, _before(self._workdir), end.values, self._falling)
        if report is not None:
            report.save(self._workdir)
        return report


@dataclass(frozen=True)
class ForgettingReport:
    """Losses and scores before and after a fine-tune.

    Attributes:
        steps: of training.
        method: of fine-tuning.
        corpus: the general text.
        tokens: of it that were measured, at most.
        rows: {name, before, after, change, gain} of each number, gain being the change in the direction that is good:
            below 0 it was forgotten.
    """

    steps: int
    method: str
    corpus: str
    tokens: int
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))

    def table(self) -> str:
        """The report for people."""
        names = {"validation_loss": "validation loss", "general_loss": f"general loss ({self.corpus})"}
        width = max(len(names.get(row["name"], row["name"])) for row in self.rows)
        lines = [f"{'':<{width}}    before     after    change"]
        for row in self.rows:
            verdict = "gained" if row["gain"] > 0 else "forgotten" if row["gain"] < 0 else "unchanged"
            numbers = f"{row['before']:10.4f}{row['after']:10.4f}{row['change']:+10.4f}"
            lines.append(f"{names.get(row['name'], row['name']):<{width}}{numbers}  {verdict}")
        return "\n".join(lines)

    def save(self, workdir: Path) -> None:
        """Write the JSON file and the plot, by process 0 alone. UserError when the disk refuses."""
        if not is_primary():
            return
        path = workdir / FILE_NAME
        try:
            path.write_text(json_text(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"Cannot write {path} ({error.strerror or error}): free space there.") from error
        plot_forgetting(workdir / METRICS, workdir / PLOT, title=workdir.name)

    @staticmethod
    def load(workdir: Path) -> ForgettingReport | None:
        """The report of a finished run, if it made one."""
        try:
            return ForgettingReport(**json.loads((workdir / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def compare(
    config: RunConfig,
    step: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    falling: Collection[str] = (),
) -> ForgettingReport | None:
    """The report on values by their names in the metrics; None where nothing was measured before.

    falling: metrics of tasks of which less is better.
    """
    names = ["validation_loss", "general_loss", *filter(is_score, before)]
    rows = []
    for name in names:
        if name in before and name in after:
            change = after[name] - before[name]
            rising = is_score(name) and metric_of(name) not in falling
            gain = change if rising else -change
            rows.append({"name": name, "before": before[name], "after": after[name], "change": change, "gain": gain})
    if not rows:
        return None
    return ForgettingReport(step, config.peft.method, config.forgetting.corpus, config.forgetting.tokens, rows)


def _before(workdir: Path) -> dict[str, float]:
    """What was measured before the first step; empty where the run's metrics do not say."""
    path = workdir / METRICS
    lines = read_metrics(path) if path.is_file() else []
    first = next((line for line in lines if line["step"] == 0 and line.get("split") == "validation"), {})
    return {name: value for name, value in first.items() if value is not None}
