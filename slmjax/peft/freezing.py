"""Parameters cut in two: what is trained and what is frozen, whole arrays or some layers of a stack."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from slmjax.peft.targets import Array, Chosen, flatten, nested


def partition(base: Any, arrays: dict[str, Array], chosen: Chosen) -> tuple[dict, dict]:
    """(chosen, rest) of the base parameters, both nested along the base's paths.

    Of a stack of which only some layers are chosen, each side has its layers, in order.
    """
    trained, rest = {}, {}
    for path, leaf in flatten(base).items():
        places, stack = chosen.get(path), arrays[path].layers
        if places is None:
            rest[path] = leaf
        elif len(places) == len(stack):
            trained[path] = leaf
        else:
            others = tuple(p for p in range(len(stack)) if p not in places)
            trained[path], rest[path] = leaf[np.asarray(places)], leaf[np.asarray(others)]
    return nested(trained), nested(rest)


def joined(trained: Any, rest: Any, chosen: Chosen) -> dict:
    """The whole parameters from their two parts; the inverse of `partition`."""
    ours, whole = flatten(trained), flatten(rest)
    for path, leaf in ours.items():
        if path in whole:  # some layers of a stack: back into the order of the layers
            stack = len(leaf) + len(whole[path])
            others = [p for p in range(stack) if p not in chosen[path]]
            order = np.argsort(np.asarray([*chosen[path], *others]))
            leaf = jnp.concatenate([leaf, whole[path].astype(leaf.dtype)])[order]
        whole[path] = leaf
    return nested(whole)
