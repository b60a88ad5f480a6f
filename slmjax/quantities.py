"""Numbers as people read them: counts, bytes, durations."""

from __future__ import annotations


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
