"""Tokens in chunks: what bounds the float32 logits that a loss of the head holds at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig

LOGITS_BYTES = 2**26  # of one chunk's float32 logits on an accelerator
CPU_LOGITS_BYTES = 2**24  # on a CPU: they then stay in cache


def logits_bytes_for(platform: str, config: ModelConfig) -> int:
    """Bytes of a chunk's logits; on a CPU no fewer than of the head, whose gradient each chunk adds to in memory."""
    return max(CPU_LOGITS_BYTES, 4 * config.vocab_size * config.embed_dim) if platform == "cpu" else LOGITS_BYTES


def chunk_size(num_tokens: int, vocab_size: int, logits_bytes: int) -> int:
    """Tokens in a chunk: a divisor-friendly size whose float32 logits stay within the limit."""
    chunk = max(128, logits_bytes // (4 * vocab_size) // 128 * 128)
    pieces = -(-num_tokens // chunk)
    return -(-num_tokens // pieces)


def cut(a_N: jax.Array, chunk: int) -> jax.Array:
    """[N, ...] -> [pieces, chunk, ...], the last piece filled up with zeros."""
    pieces = -(-a_N.shape[0] // chunk)
    fill = pieces * chunk - a_N.shape[0]
    return jnp.pad(a_N, ((0, fill),) + ((0, 0),) * (a_N.ndim - 1)).reshape(pieces, chunk, *a_N.shape[1:])


def chunk_logits(x_NE: jax.Array, kernel_EV: jax.Array, bias_V: jax.Array | None) -> jax.Array:
    """x @ kernel + bias, float32 [N, V], before the family's divisor and soft cap (`scale_logits`)."""
    logits_NV = jnp.matmul(x_NE, kernel_EV, preferred_element_type=jnp.float32)
    return logits_NV if bias_V is None else logits_NV + bias_V
