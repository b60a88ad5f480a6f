"""In-context learning: how a model's accuracy changes with the examples in its prompts.

The survey of small language models (arXiv:2409.15790) draws it for 0, 1 and 5 shots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slmjax.console import warn
from slmjax.errors import UserError, first_few
from slmjax.figures import new_figure, short_name, tidy, write_figure

if TYPE_CHECKING:
    from slmjax.evaluation.harness.run import Selection
    from slmjax.inference.language_model import LanguageModel

# The metric of a task's line, the first of these that it has.
ACCURACIES = ("acc_norm", "acc", "exact_match", "pass@1", "mc2", "accuracy", "execution_match", "f1", "em")
_FILTERS = ("flexible-extract", "none")  # of several of a metric, this first


@dataclass(frozen=True)
class Line:
    """The accuracy of a task, or of a group as the harness weights it, by the number of shots.

    Attributes:
        values, stderrs: by shots; a standard error is None where the metric has none.
    """

    task: str
    metric: str
    filter: str
    values: dict[int, float]
    stderrs: dict[int, float | None]


def load_shots(names: Sequence[str], shots: Sequence[int], **options: Any) -> dict[int, Selection]:
    """The tasks of these names at each number of shots, in ascending order; options: of `load_tasks`.

    Raises:
        UserError: more shots than a task has examples, no task that takes any, or what `load_tasks` refuses.
    """
    from slmjax.evaluation.harness.run import load_tasks

    selections = {n: load_tasks(names, num_fewshot=n, **options) for n in sorted(set(shots))}
    fixed = {
        each.name
        for n, selection in selections.items()
        for each in selection.loaded
        if any((task.get_config("num_fewshot") or 0) != n for task in each.tasks.values())
    }
    kept = {
        n: replace(selection, loaded=[each for each in selection.loaded if each.name not in fixed])
        for n, selection in selections.items()
    }
    if not all(selection.loaded for selection in kept.values()):
        raise UserError(
            f"{first_few(sorted(fixed))} always have the same shots: give --shots tasks that take any number."
        )
    if fixed:
        warn(f"left out, as they always have the same shots: {', '.join(sorted(fixed))}")
    return kept


def evaluate_shots(
    lm: LanguageModel | Any,
    selections: Mapping[int, Selection],
    *,
    settings: Callable[[int], Mapping[str, Any]] = lambda n: {},
    **options: Any,
) -> dict[int, dict[str, Any]]:
    """The harness's results at each number of shots, each in a call of its own: it keys results by name alone.

    settings: arguments of `evaluate_harness` that differ by shots, such as where to write. options: the others.
    """
    from slmjax.evaluation.harness.run import evaluate_harness

    return {n: evaluate_harness(lm, selection, **options, **settings(n)) for n, selection in selections.items()}


def accuracy_lines(results: Mapping[int, Mapping[str, Any]]) -> list[Line]:
    """A line a task, or a group that has a score in the place of its tasks."""
    first = results[min(results)]
    members = first.get("group_subtasks", {})
    scored = {name for name in members if any("," in key for key in first["results"].get(name, {}))}
    inside = {child for group in scored for child in _below(group, members)}
    lines = []
    for name, scores in first["results"].items():
        chosen = None if name in inside else _accuracy(scores)
        if chosen is not None:
            metric, filter = chosen
            keys = f"{metric},{filter}", f"{metric}_stderr,{filter}"
            values, stderrs = ({n: each["results"][name].get(key) for n, each in results.items()} for key in keys)
            lines.append(
                Line(name, metric, filter, values, {n: e if isinstance(e, float) else None for n, e in stderrs.items()})
            )
    return lines


def _accuracy(scores: Mapping[str, Any]) -> tuple[str, str] | None:
    """The metric and filter by which a task is drawn; None where it has no accuracy."""
    for metric in ACCURACIES:
        filters = [key.partition(",")[2] for key in scores if key.partition(",")[0] == metric]
        if filters:
            return metric, next((filter for filter in _FILTERS if filter in filters), filters[0])
    return None


def _below(group: str, members: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    left = [group]
    while left:
        for child in members.get(left.pop(), ()):
            if child not in found:
                found.add(child)
                left.append(child)
    return found


def shots_table(lines: Sequence[Line]) -> str:
    """A row a task and a column a number of shots, with the change from the fewest to the most, and the mean below."""
    if not lines:
        return "No task has an accuracy: its results are in the files of --output."
    shots = list(lines[0].values)
    head = ["task", "metric", *(f"{n} shots" if n != 1 else "1 shot" for n in shots), "change"]
    rows = [head]
    for line in lines:
        label = line.metric if line.filter == "none" else f"{line.metric} ({line.filter})"
        rows.append([line.task, label, *_numbers([line.values[n] for n in shots])])
    if len(lines) > 1:
        rows.append(["mean", "", *_numbers(mean_accuracy(lines).tolist())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def mean_accuracy(lines: Sequence[Line]) -> np.ndarray:
    """The plain mean over tasks at each number of shots, float64 [shots]."""
    return np.array([list(line.values.values()) for line in lines], np.float64).mean(0)


def plot_shots(lines: Sequence[Line], png: str | Path, title: str = "") -> None:
    """Draw accuracy over shots: a line a task with its standard errors, and the mean of all."""
    from matplotlib import colormaps

    shots = list(lines[0].values)
    figure = new_figure(8, max(5, 1.5 + 0.24 * len(lines)))
    axes = figure.subplots()
    for number, line in enumerate(lines):
        errors = [line.stderrs[n] or 0.0 for n in shots]
        color = colormaps["tab20"](number % 20)
        values = [100 * line.values[n] for n in shots]
        axes.errorbar(
            shots, values, [100 * e for e in errors], fmt="o-", color=color, linewidth=1.3, markersize=4, capsize=2,
            label=line.task if len(line.task) <= 32 else f"{line.task[:29]}...",
        )  # fmt: skip
    if len(lines) > 1:
        axes.plot(shots, 100 * mean_accuracy(lines), "k--", linewidth=2, label="mean")
    axes.set_xticks(shots)
    axes.set_xlabel("shots (examples in the prompt)")
    axes.set_ylabel("accuracy (%), with standard errors")
    axes.set_title(
        f"In-context learning: {short_name(title, 50)}" if title else "In-context learning",
        loc="left",
        weight="bold",
        parse_math=False,
    )
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    tidy(axes)
    write_figure(figure, png)


def _numbers(values: Sequence[float]) -> list[str]:
    return [*(f"{value:.4f}" for value in values), f"{values[-1] - values[0]:+.4f}"]
