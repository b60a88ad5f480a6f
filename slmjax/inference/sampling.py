"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from slmjax.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: temperature first, then top-k, then top-p, as in transformers."""

    temperature: float = 0.0  # 0: the most likely token
    top_k: int = 0  # 0: all
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or a number above it.")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must be 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1.")


GREEDY = Sampling()


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token a row, int32 [B], from float32 logits; each row has its own key and depends on no other."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    V = logits_BV.shape[-1]
    if 0 < sampling.top_k < V:
        kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
        probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # The smallest set whose probability reaches top_p: a token stays while those before it have not reached it.
        before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
        last_B1 = jnp.min(jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
