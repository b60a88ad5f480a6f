"""Attention of new tokens over a long static cache of which little may be filled: as much is read as is filled."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slmjax.models.attention.contract import MASKED, Mask, Scores

BLOCK = 256  # keys a step of the loop; not measured against others


def cached_attention(q_BTHK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, mask: Mask, scores: Scores) -> jax.Array:
    """Attention [B, T, H, K] of queries at `mask.offset + t` over a cache with heads first.

    The mask has distances or segments. A prefix counts as the cache's first positions: with a window or slopes it must
    have none, unless there are distances. Softmax is accumulated over blocks of keys (Milakov and Gimelshein 2018,
    arXiv:1805.02867) from the first that a window shows to the last that is filled.
    """
    assert mask.offset is not None
    index = mask.offset
    B, T, H, K = q_BTHK.shape
    G, S = k_BGSK.shape[1:3]
    R = H // G
    q_BGNK = q_BTHK.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4).reshape(B, G, R * T, K)

    def distances(start, length):
        """How far the keys from `start` lie behind each query, int32 [B, T, length]; negative: not seen."""
        if mask.distances is not None:
            return jax.lax.dynamic_slice_in_dim(mask.distances, start, length, axis=2)
        assert mask.q_segments is not None and mask.kv_segments is not None
        segments_Bs = jax.lax.dynamic_slice_in_dim(mask.kv_segments, start, length, axis=1)
        distance_TS = index + jnp.arange(T)[:, None] - (start + jnp.arange(length))
        return jnp.where(mask.q_segments[:, :, None] == segments_Bs[:, None, :], distance_TS, -1)

    def logits(start, length, first):
        """Masked logits [B, G, R, T, length] of the keys from `start`; keys before `first` are hidden."""
        keys = jax.lax.dynamic_slice_in_dim(k_BGSK, start, length, axis=2)
        x = jnp.einsum("bgnk,bgsk->bgns", q_BGNK, keys, preferred_element_type=jnp.float32)
        x = x.reshape(B, G, R, T, length) * scores.scale
        if scores.softcap is not None:
            x = scores.softcap * jnp.tanh(x / scores.softcap)
        distance = distances(start, length)[:, None, None]
        if scores.slopes is not None:
            x = x - scores.slopes.reshape(G, R, 1, 1) * distance
        visible = (distance >= 0) & (start + jnp.arange(length) >= first)
        if mask.window is not None:
            visible &= distance < mask.window
        return jnp.where(visible, x, MASKED).reshape(B, G, R * T, length)

    def add_block(i, state):
        top_BGN, total_BGN, sum_BGNK = state
        start = jnp.minimum(i * BLOCK, S - BLOCK)  # the last block may begin inside the one before it
        x = logits(start, BLOCK, i * BLOCK)
        values = jax.lax.dynamic_slice_in_dim(v_BGSK, start, BLOCK, axis=2)
        new_top = jnp.maximum(top_BGN, x.max(-1))
        shrink, weights = jnp.exp(top_BGN - new_top), jnp.exp(x - new_top[..., None])
        added = jnp.einsum("bgns,bgsk->bgnk", weights.astype(values.dtype), values)
        return new_top, total_BGN * shrink + weights.sum(-1), sum_BGNK * shrink[..., None] + added

    if S <= 2 * BLOCK:
        weights = jax.nn.softmax(logits(0, S, 0), axis=-1).astype(v_BGSK.dtype)
        context_BGNK = jnp.einsum("bgns,bgsk->bgnk", weights, v_BGSK)
    else:
        in_order = mask.distances is None  # slots are positions
        first = jnp.maximum(index - mask.window + 1, 0) // BLOCK if mask.window is not None and in_order else 0
        N = R * T
        empty = (jnp.full((B, G, N), MASKED), jnp.zeros((B, G, N)), jnp.zeros((B, G, N, K)))
        _, total_BGN, sum_BGNK = jax.lax.fori_loop(first, (index + T - 1) // BLOCK + 1, add_block, empty)
        context_BGNK = sum_BGNK / total_BGN[..., None]
    context = context_BGNK.reshape(B, G, R, T, K).transpose(0, 3, 1, 2, 4)
    return context.reshape(B, T, H, K).astype(q_BTHK.dtype)
