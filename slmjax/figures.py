"""Figures as PNG, drawn without a display: their size, their look, and how they are written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any


def new_figure(width: float = 8, height: float = 5) -> Any:
    """A figure of matplotlib of this size in inches: no global state, no window, and no search for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def short_name(name: str, most: int = 70) -> str:
    """A model's name or path as a title has room for it: its end."""
    name = name.rstrip("/")
    return name if len(name) <= most else f"...{name[3 - most :]}"


def tidy(axes: Any) -> None:
    """A light grid, and no frame above and to the right."""
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def write_figure(figure: Any, png: str | Path) -> None:
    """Write a figure, making its directory where there is none."""
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # a name in a title that matplotlib's font does not have is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(png)
