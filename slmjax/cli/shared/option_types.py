"""Types of options: a value that is no number, beyond its bounds or empty is a sentence."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from slmjax.field_types import MAX_INTEGER


def whole_number(least: int = -MAX_INTEGER, most: int = MAX_INTEGER) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            bounds = f" of at least {least}" if most == MAX_INTEGER else f" from {least} to {most}"
            bounds = " of at most 63 bits" if least == -MAX_INTEGER else bounds
            raise argparse.ArgumentTypeError(f"{text[:60]!r} must be a whole number{bounds}")
        return value

    return parse


def real_number(text: str) -> float:
    """The type of an option that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} must be a finite number")
    return value


def not_empty(text: str) -> str:
    """The type of an option that is empty where a variable of the shell was not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty")
    return text
