"""Tables of numbers for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def print_table(rows: Mapping[str, Any]) -> None:
    """Print a row per name, values to the right, whole numbers with thousands separators, others with four digits."""
    cells = {name: number(value) for name, value in rows.items()}
    names, values = max(map(len, cells), default=0), max(map(len, cells.values()), default=0)
    for name, cell in cells.items():
        print(f"{name:<{names}}  {cell:>{values}}")


def number(value: Any) -> str:
    """The text of a value as a person would write it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
