"""Several processes in one run: which one speaks, and where they wait for each other."""

from __future__ import annotations

import jax

from slmjax import console


def is_primary() -> bool:
    """Whether this is process 0, which writes what all share and talks to the user."""
    return jax.process_index() == 0


def warn(message: str) -> None:
    """Print a warning about the run, from process 0 alone."""
    if is_primary():
        console.warn(message)


def barrier(name: str) -> None:
    """Wait here for every process; `name` must be the same on all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
