"""The base of a fine-tune: which parameters were they, and do these fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError, first_few
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import flatten


@jax.jit
def _digest(leaf: jax.Array) -> jax.Array:
    """A sum modulo 2^32 of the bits times odd factors of their places: the same however the array is sharded."""
    bits = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize])
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = (bits.astype(jnp.uint32) + 1) * (place * jnp.uint32(2654435761) | 1)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)


def fingerprint(params: Any) -> str:
    """16 hexadecimal digits that tell one base from another, not from a forgery; independent of sharding."""
    total = 0
    for path, leaf in sorted(flatten(params).items()):
        for byte in f"{path}{leaf.shape}{leaf.dtype}:{int(_digest(leaf))}".encode():
            total = ((total ^ byte) * 1099511628211) % 2**64  # FNV-1a
    return f"{total:016x}"


def require_same_model(wanted: ModelConfig, base: ModelConfig, where: str) -> None:
    """UserError naming what differs, unless the base at `where` is the network that the config describes."""
    ours, theirs = wanted.to_dict(), base.to_dict()
    # A run may be shorter than its base, and no file says how its weights began.
    free = ("context_length", "init_std", "init_scale_residual")
    keys = [key for key in ours if key not in free and ours[key] != theirs[key]]
    if keys:
        different = first_few([f"{key} is {theirs[key]!r} there, {ours[key]!r} here" for key in keys], 4, "; ")
        raise UserError(f"peft.base={where} is another network than the config's section model: {different}.")
