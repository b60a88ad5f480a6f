"""Where a fine-tune began, kept beside what is frozen: what L2-SP, EWC and KL to the base measure from.

`frozen` gains `start`, the trained part of the base as it was (in no checkpoint: the base's own files hold it), and
for EWC `added_start`, what the method added as it was, and `fisher`, the diagonal Fisher information of all that is
trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.peft.method import Method

OF_BASE = ("params", "start")  # what of `frozen` is made from the base anew when a run goes on


def anchored(method: Method, *, added: bool) -> Method:
    """The method with the start of its base's weights in `frozen`; with `added`, also what EWC needs (zeros)."""

    def split(base: Any, key: jax.Array) -> tuple[Any, Any]:
        trained, frozen = method.split(base, key)
        own = base_weights(method, trained)
        frozen = frozen | ({"start": jax.tree.map(jnp.copy, own)} if own else {})
        if added:
            more = {} if method.whole else {"added_start": trained.get("peft", {})}
            frozen |= {name: jax.tree.map(jnp.copy, tree) for name, tree in more.items() if tree}
            frozen["fisher"] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
        return trained, frozen

    return dataclasses.replace(method, split=split)


def base_weights(method: Method, trained: Any) -> Any:
    """The part of what is trained that is the base's own; {} where there is none."""
    return trained if method.whole else trained.get("params", {})


def at_start(method: Method, frozen: Any) -> Any:
    """What is trained as it was at the start; of an anchored method, what was added only where EWC keeps it."""
    if method.whole:
        return frozen["start"]
    parts = {"peft": frozen.get("added_start"), "params": frozen.get("start")}
    return {name: tree for name, tree in parts.items() if tree is not None}


def base_params(method: Method, trained: Any, frozen: Any) -> Any:
    """The whole parameters of the base as it was, with nothing added."""
    if method.whole:
        return frozen["start"]
    return method.parts(trained | ({"params": frozen["start"]} if "start" in frozen else {}), frozen)["params"]
