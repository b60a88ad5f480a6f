"""Lines on stderr while something runs: progress and warnings. Results go to stdout, mistakes are raised."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Print a line of progress. Functions of the library take it as `say=`, so that a caller may send it elsewhere."""
    print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning about a run: something went on, but not as it should. A caller's oddity is `warnings.warn`'s."""
    say(f"warning: {message}")
