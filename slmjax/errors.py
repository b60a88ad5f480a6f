"""The one exception that a user is meant to read, and the small change of its sentences."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

_MAX_SENTENCE = 2000  # characters


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what, where, and what to do instead.

    The command line prints it to stderr without a traceback and exits with status 2. It may quote what a file holds:
    characters that would break the line or steer a terminal are shown as escapes, and the middle of a very long
    sentence is left out.
    """

    def __str__(self) -> str:
        text = re.sub(r"\s*\n\s*", " ", super().__str__())
        if len(text) > _MAX_SENTENCE:
            text = f"{text[: _MAX_SENTENCE - 500]} ... {text[-500:]}"
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; the name of its type when it has none."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__


def shown(value: Any) -> str:
    """A value of unknown size as a sentence quotes it: its first characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_few(items: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """The first `count` items, and how many more there are: "a, b, c and 4 more"."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1, otherwise: str = "") -> str:
    """The end of a sentence about an unknown name: "did you mean 'lora'?" or "choose one of full, lora.".

    most: names to suggest. otherwise: what to say where none is near, for `known` that are too many to list.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return otherwise or f"choose one of {', '.join(names)}."
