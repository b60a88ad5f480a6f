"""How far the weights have moved: L2-SP and EWC, pure functions of what is trained and where it began."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.parameters import flatten


def squared_distance(trained: Any, start: Any, factors: Any = None) -> jax.Array:
    """Sum over all numbers of factor * (theta - theta0)^2, float32; factors: a tree like the others, None for ones.

    Half of it times lambda is EWC's penalty with the diagonal Fisher information (Kirkpatrick et al. 2017,
    arXiv:1612.00796, eq. 3), and without factors L2-SP's (Li et al. 2018, arXiv:1802.01483).
    """

    def one(theta: jax.Array, theta0: jax.Array, factor: jax.Array | float) -> jax.Array:
        moved = theta.astype(jnp.float32) - theta0.astype(jnp.float32)
        return jnp.sum(factor * jnp.square(moved))

    factors = jax.tree.map(lambda _: 1.0, trained) if factors is None else factors
    return sum(jax.tree.leaves(jax.tree.map(one, trained, start, factors)), jnp.zeros((), jnp.float32))


def lora_distance(collection: Any) -> jax.Array:
    """The squared Frobenius norm of all that LoRA adds to the weights, sum of ||s A B||^2, float32.

    It is tr((A^T A)(B B^T)) s^2: products of the rank's size, never the weight's. `collection` is what the network sees
    (`Lora.collection`). UserError for DoRA, whose weights change in length too.
    """
    flat = flatten(collection)
    total = jnp.zeros((), jnp.float32)
    for path, a in flat.items():
        module, _, name = path.rpartition("/")
        if name == "dora_magnitude":
            raise UserError("forgetting.l2_sp knows no distance for DoRA: use forgetting.kl, or peft.lora.dora=False.")
        if name == "lora_a":
            b, scale = flat[f"{module}/lora_b"], flat[f"{module}/lora_scale"]
            grams = (jnp.matmul(*pair, precision="highest") for pair in ((a.mT, a), (b, b.mT)))
            inner = jnp.sum(next(grams) * next(grams), axis=(-2, -1))
            total += jnp.sum(jnp.square(scale) * inner)
    return total
