"""Attention in plain XLA, which covers every call on every platform."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slmjax.models.attention.contract import MASKED, Mask, Scores, SequenceCall

MAX_BLOCKS = 16  # so that the program stays small at long contexts; the number itself is not measured


@dataclass(frozen=True)
class XlaAttention:
    """Attention a block of queries at a time where the sequence is whole.

    With queries and keys of one causal sequence, a block of queries needs no key after its end (and none before its
    window), so 4 blocks do 5/8 of the full square's work.
    """

    block_size: int = 128  # queries; not measured against others

    def supports(self, mask: Mask, scores: Scores, q_BTHK: jax.Array, shards: int = 1) -> bool:
        """True: XLA is where other backends fall back to."""
        del mask, scores, q_BTHK, shards
        return True

    def __call__(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores
    ) -> jax.Array:
        """Attention [B, T, H, K] (see `AttentionFn`)."""
        T, S, prefix = q_BTHK.shape[1], k_BSGK.shape[1] - mask.prefix, mask.prefix
        if mask.is_whole and T != S:
            raise ValueError(f"{T} queries over {S} keys are not a whole sequence: give the mask an offset.")

        def keys(x, first, last):
            """The prefix and the keys from index first to last."""
            if not prefix:
                return x[:, first:last]
            return jnp.concatenate([x[:, :prefix], x[:, prefix + first : prefix + last]], axis=1)

        block = max(self.block_size, -(-T // MAX_BLOCKS)) if mask.is_whole else T
        outputs = []
        for start in range(0, T, block):
            stop = min(start + block, T)
            first, last = 0, S
            if mask.is_whole:
                last = stop
                first = 0 if mask.window is None else max(0, start - mask.window + 1)
            outputs.append(
                _attend(
                    q_BTHK[:, start:stop],
                    keys(k_BSGK, first, last),
                    keys(v_BSGK, first, last),
                    (0 if mask.offset is None else mask.offset) + jnp.arange(start, stop),
                    np.concatenate([np.arange(-prefix, 0), np.arange(first, last)]),
                    None if mask.q_segments is None else mask.q_segments[:, start:stop],
                    None if mask.kv_segments is None else keys(mask.kv_segments, first, last),
                    mask.window,
                    scores,
                )
            )
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)

    def over_sequence(self, mesh: Mesh, mask: Mask, scores: Scores, q_BTHK: jax.Array) -> SequenceCall:
        """Each device's queries at their index among the keys, which it has all of."""
        del mesh, mask, scores, q_BTHK

        def call(operands, q, k, v, mask, scores):
            del operands
            start = jax.lax.axis_index("sequence") * q.shape[1]
            return self(q, k, v, mask.replace(offset=start), scores)

        return SequenceCall(None, None, call)


def _attend(q, k, v, q_index, k_index, q_segments, kv_segments, window, scores: Scores):
    """One block of queries over one range of keys. q [B,T,H,K], k and v [B,S,G,K], q_index [T], k_index [S]."""
    B, T, H, K = q.shape
    G = k.shape[2]
    logits = jnp.einsum("btgrk,bsgk->bgrts", q.reshape(B, T, G, H // G, K), k, preferred_element_type=jnp.float32)
    logits = logits * scores.scale
    if scores.softcap is not None:
        logits = scores.softcap * jnp.tanh(logits / scores.softcap)
    distance = q_index[:, None] - k_index[None, :]
    everywhere = k_index < 0  # the prefix
    if scores.slopes is not None:
        logits = logits - scores.slopes.reshape(G, H // G, 1, 1) * jnp.where(everywhere, 0, distance)
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if q_segments is not None:
        mask = mask & (q_segments[:, :, None] == kv_segments[:, None, :])[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask | everywhere, logits, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, v).reshape(B, T, H, K)


xla_attention = XlaAttention()
