"""lm-evaluation-harness in process: its tasks, our model, its results. Nothing here is imported without it."""

from __future__ import annotations

from importlib.util import find_spec

from slmjax.errors import UserError


def has_harness() -> bool:
    """Whether lm-evaluation-harness is installed."""
    return find_spec("lm_eval") is not None


def require_harness() -> None:
    """UserError where lm-evaluation-harness is not installed."""
    if not has_harness():
        raise UserError("Tasks need lm-evaluation-harness, which is not installed: pip install 'slmjax[eval]'.")
