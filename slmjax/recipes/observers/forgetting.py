"""What a fine-tune gained and what it forgot: the same losses before and after, as a table, as JSON, as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.training.config import RunConfig
from slmjax.training.reporting.metrics import FILE_NAME as METRICS
from slmjax.training.reporting.metrics import read_metrics

FILE_NAME = "forgetting.json"
PLOT = "forgetting.png"
TASK = "task/"  # before a task's name in the metrics
# Any task: (program, state) -> a score, more is better. It is run before training and when the run has ended.
Task = Callable[[Any, Any], float]


def measured(config: RunConfig) -> bool:
    """Whether general text is measured, where there is a base that could be forgotten."""
    return bool(config.forgetting.tokens and config.forgetting.corpus)


def scores(tasks: Mapping[str, Task], program: Any, state: Any) -> dict[str, float]:
    """The score of each task, by its name in the metrics."""
    return {TASK + name: float(task(program, state)) for name, task in tasks.items()}


def before(workdir: Path) -> dict[str, float]:
    """What was measured before the first step; empty where the run's metrics do not say."""
    path = workdir / METRICS
    lines = read_metrics(path) if path.is_file() else []
    first = next((line for line in lines if line["step"] == 0 and line.get("split") == "validation"), {})
    return {name: value for name, value in first.items() if value is not None}


def report(config: RunConfig, step: int, old: Mapping[str, float], new: Mapping[str, float]) -> dict[str, Any] | None:
    """The rows of the table and what they were measured on; None where nothing was measured before.

    old, new: values by their names in the metrics. A row is {name, before, after, change, gain}, gain being the change
    in the direction that is good: below 0 it was forgotten.
    """
    names = ["validation_loss", "general_loss", *(name for name in old if name.startswith(TASK))]
    rows = []
    for name in names:
        if name in old and name in new:
            change = new[name] - old[name]
            gain = change if name.startswith(TASK) else -change
            rows.append({"name": name, "before": old[name], "after": new[name], "change": change, "gain": gain})
    if not rows:
        return None
    f = config.forgetting
    return {"steps": step, "method": config.peft.method, "corpus": f.corpus, "tokens": f.tokens, "rows": rows}


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    names = {
        "validation_loss": "validation loss",
        "general_loss": f"general loss ({report['corpus']})",
    }
    width = max(len(names.get(row["name"], row["name"])) for row in report["rows"])
    lines = [f"{'':<{width}}    before     after    change"]
    for row in report["rows"]:
        verdict = "gained" if row["gain"] > 0 else "forgotten" if row["gain"] < 0 else "unchanged"
        numbers = f"{row['before']:10.4f}{row['after']:10.4f}{row['change']:+10.4f}"
        lines.append(f"{names.get(row['name'], row['name']):<{width}}{numbers}  {verdict}")
    return "\n".join(lines)


def write(workdir: Path, report: Mapping[str, Any]) -> None:
    """WORKDIR/forgetting.json and, once there are two measurements, WORKDIR/forgetting.png; process 0 alone."""
    if jax.process_index() != 0:
        return
    from slmjax.training.reporting.plots import plot_forgetting

    path = workdir / FILE_NAME
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error}); free space there.") from error
    plot_forgetting(workdir / METRICS, workdir / PLOT, title=workdir.name)


def read(workdir: Path) -> dict[str, Any] | None:
    """The report of a finished run, if it made one."""
    try:
        return json.loads((workdir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
