"""Numbers for people: rows that line up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def print_table(rows: Mapping[str, Any]) -> None:
    """One row a name, values to the right, whole numbers with thousands separators, others with four digits."""
    cells = {name: number(value) for name, value in rows.items()}
    names, values = max(map(len, cells), default=0), max(map(len, cells.values()), default=0)
    for name, cell in cells.items():
        print(f"{name:<{names}}  {cell:>{values}}")


def number(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def size(num_bytes: float) -> str:
    """Bytes in the unit that leaves 1 to 1023 of it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} TiB"
