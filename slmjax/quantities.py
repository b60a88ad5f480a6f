"""Numbers as people and JSON read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def format_count(number: float) -> str:
    """Three significant digits with k, M, B or T: 134515008 is "135M"."""
    number = float(f"{number:.3g}")  # 999.7 is 1k, not 1e+03
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def format_bytes(num_bytes: float) -> str:
    """Four significant digits in the binary unit that leaves 1 to 1023 of it: 3221225472 is "3 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} TiB"


def format_duration(seconds: float) -> str:
    """Minutes and seconds as "3:07", from an hour on as "1:03:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def json_text(value: Any, **options: Any) -> str:
    """JSON of plain values, null in the place of numbers that are not finite: JSON has none, and few readers take NaN.

    options: of `json.dumps`.
    """
    return json.dumps(_finite(value), **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
