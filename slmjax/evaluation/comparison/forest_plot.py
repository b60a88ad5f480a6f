"""The differences of a comparison as a forest plot: a line a metric of a task, with its interval."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from slmjax.evaluation.comparison.compare import Comparison, Row
from slmjax.figures import new_figure, short_name, tidy, write_figure

MAX_ROWS = 200  # of a picture; more are in the table
_COLORS = {"A": "#08519c", "B": "#d94801", "": "#999999"}


def plot_comparison(comparison: Comparison, png: str | Path) -> None:
    """Draw A - B of every row with its 95% interval, what is better for A to the right.

    Scores are drawn as they are, perplexities and bits per byte in percent of B's, on an axis of their own.
    """
    drawn = comparison.rows[:MAX_ROWS]
    scores = [row for row in drawn if row.test != "bootstrap"]
    others = [row for row in drawn if row.test == "bootstrap"]
    panels = [(rows, scale) for rows, scale in ((scores, 1.0), (others, 100.0)) if rows]
    heights = [len(rows) + 1.5 for rows, _ in panels]
    figure = new_figure(8, 1.2 + 0.3 * sum(heights))
    all_axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (rows, scale) in zip(all_axes, panels, strict=True):
        _draw(axes, rows, scale)
        unit = "difference of the scores" if scale == 1 else "difference in % of B's"
        axes.set_xlabel(f"← B is better   {unit}, 95% interval   A is better →")
    title = f"A: {short_name(comparison.a)}\nB: {short_name(comparison.b)}"
    if len(drawn) < len(comparison.rows):
        title += f"\nthe first {len(drawn)} of {len(comparison.rows)} rows"
    all_axes[0].set_title(title, loc="left", fontweight="bold", fontsize=10, parse_math=False)
    write_figure(figure, png)


def _draw(axes: Any, rows: list[Row], scale: float) -> None:
    axes.axvline(0, color="#666666", linewidth=0.9)
    for place, row in enumerate(rows):
        unit = scale * (1 if row.higher_is_better else -1) / (abs(row.b) or 1 if scale != 1 else 1)
        color = _COLORS[row.better]
        if not math.isnan(row.low):
            axes.plot([unit * row.low, unit * row.high], [place, place], color=color, linewidth=1.8)
        axes.plot([unit * row.difference], [place], "o", color=color, markersize=5)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first at the top
    tidy(axes)


def _label(row: Row) -> str:
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    name = row.task if len(row.task) <= 40 else f"{row.task[:37]}..."
    return f"{name}  {metric}  n={row.items:,}"
