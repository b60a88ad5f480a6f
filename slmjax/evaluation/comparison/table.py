"""The rows of a comparison as a table for people."""

from __future__ import annotations

import math
from itertools import zip_longest

from slmjax.evaluation.comparison.compare import LEVEL, Comparison, Row

HEAD = ("task", "metric", "items", "A", "B", "A - B", "95% interval", "p", "p (Holm)", "")
_LEFT = (0, 1, 9)  # columns of words


def comparison_table(comparison: Comparison) -> str:
    """A header, a line a row with its verdict in words, and what was not compared."""
    rows = [HEAD] + [_cells(row) for row in comparison.rows]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = [f"A: {comparison.a}", f"B: {comparison.b}", ""]
    for row in rows:
        cells = [
            cell.ljust(width) if place in _LEFT else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    several = f" of {len(comparison.rows)} comparisons" if len(comparison.rows) > 1 else ""
    lines += ["", f"Better by more than noise: the p-value{several}, adjusted after Holm, is below {LEVEL:g}."]
    return "\n".join(map(_printable, lines + comparison.notes))


def _cells(row: Row) -> tuple[str, ...]:
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    interval = "none" if math.isnan(row.low) else f"{row.low:+.4f} to {row.high:+.4f}"
    scores = (f"{row.a:.4f}", f"{row.b:.4f}", f"{row.difference:+.4f}", interval)
    return (row.task, metric, f"{row.items:,}", *scores, _p(row.p), _p(row.p_holm), row.verdict)


def _printable(line: str) -> str:
    """A line without characters that steer a terminal: names come from files of others."""
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
