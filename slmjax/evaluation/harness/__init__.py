"""lm-evaluation-harness in process: its tasks, our model, its results. Nothing here is imported without it."""

from __future__ import annotations

from importlib.util import find_spec

from slmjax.errors import UserError


def require_harness() -> None:
    """UserError where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError("Tasks need lm-evaluation-harness, which is not installed: pip install 'slmjax[eval]'.")
