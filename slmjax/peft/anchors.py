"""Where a fine-tune began, kept beside what is frozen: what L2-SP, EWC and KL to the base measure from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.models.parameters import Params, PyTree

REBUILT = ("params", "start")  # parts of `frozen` that are made from the base anew when a run goes on


@dataclass(frozen=True)
class Anchors:
    """The part of `frozen` that says where a fine-tune began. The fields' names are the keys there, and on disk."""

    start: Params | None = None  # the trained part of the base as it was; in no checkpoint: the base's files hold it
    added_start: Params | None = None  # for EWC: what the method added, as it was
    fisher: PyTree | None = None  # for EWC: the diagonal Fisher information of all that is trained, float32

    @classmethod
    def of(cls, frozen: dict[str, Any]) -> Anchors:
        """Those that `frozen` holds."""
        return cls(**{name: frozen.get(name) for name in _FIELDS})

    @classmethod
    def at(cls, trained: Params, *, ewc: bool) -> Anchors:
        """Those of what is trained, as it is now; ewc: what EWC needs too, with a Fisher information of zeros."""
        start = jax.tree.map(jnp.copy, trained.get("params"))
        if not ewc:
            return cls(start)
        fisher = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
        return cls(start, jax.tree.map(jnp.copy, trained.get("peft")), fisher)

    def put_into(self, frozen: dict[str, Any]) -> dict[str, Any]:
        """`frozen` with these and no other anchors."""
        others = {name: tree for name, tree in frozen.items() if name not in _FIELDS}
        return others | {name: tree for name in _FIELDS if (tree := getattr(self, name)) is not None}

    def trained(self) -> Params:
        """What is trained as it was at the start; what was added only where EWC keeps it."""
        parts = {"peft": self.added_start, "params": self.start}
        return {name: tree for name, tree in parts.items() if tree is not None}


_FIELDS = tuple(field.name for field in dataclasses.fields(Anchors))
