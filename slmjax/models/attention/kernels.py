"""The one door to attention: softmax(q k^T * scale + bias) v under a causal, windowed, document-isolating mask.

Every backend has the same signature (`AttentionFn`) and passes the same test of packing isolation: splash on TPU
(`attention_tpu.py`), cuDNN on GPU (`attention_gpu.py`), XLA everywhere (here).
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a fully masked row is not NaN


class AttentionFn(Protocol):
    """Causal attention of queries at indices `q_offset + t` over keys at indices `s` of the same rows."""

    def __call__(
        self,
        q_BTHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        *,
        q_segments_BT: jax.Array | None,
        kv_segments_BS: jax.Array | None,
        q_offset: jax.Array | int,
        scale: float,
        window: int | None,
        softcap: float | None,
        slopes_H: jax.Array | None,
        prefix: int = 0,
    ) -> jax.Array:
        """Return [B, T, H, K] in q's dtype.

        H is a multiple of G; query head h reads key/value head h // (H / G). A key is visible when its index is at most
        the query's, fewer than `window` behind it, and its segment is the query's (None: one segment). `slopes_H`
        are ALiBi's: the logit falls by slope * distance; None: no bias. `softcap` c replaces logits x by
        c * tanh(x / c) before the mask. The first `prefix` keys stand before index 0: all queries see them, in whatever
        segment and window, without ALiBi's bias.
        """
        ...


def _attend(q, k, v, q_index, k_index, q_segments, kv_segments, scale, window, softcap, slopes):
    """One block of queries over one range of keys. q [B,T,H,K], k and v [B,S,G,K], q_index [T], k_index [S]."""
    B, T, H, K = q.shape
    G = k.shape[2]
    logits = jnp.einsum("btgrk,bsgk->bgrts", q.reshape(B, T, G, H // G, K), k, preferred_element_type=jnp.float32)
    logits = logits * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    distance = q_index[:, None] - k_index[None, :]
    everywhere = k_index < 0  # the prefix
    if slopes is not None:
        logits = logits - slopes.reshape(G, H // G, 1, 1) * jnp.where(everywhere, 0, distance)
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if q_segments is not None:
        mask = mask & (q_segments[:, :, None] == kv_segments[:, None, :])[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask | everywhere, logits, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, v).reshape(B, T, H, K)


def xla_attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    *,
    q_segments_BT,
    kv_segments_BS,
    q_offset,
    scale,
    window,
    softcap,
    slopes_H,
    prefix=0,
    block_size=128,
):
    """Attention in plain XLA (see `AttentionFn`), a block of queries at a time when the sequence is whole.

    With queries and keys of one causal sequence, a block of queries needs no key after its end (and none before its
    window), so 4 blocks do 5/8 of the full square's work.
    """
    T, S = q_BTHK.shape[1], k_BSGK.shape[1] - prefix
    whole = isinstance(q_offset, int) and q_offset == 0 and T == S

    def keys(x, first, last):
        """The prefix and the keys from index first to last."""
        if not prefix:
            return x[:, first:last]
        return jnp.concatenate([x[:, :prefix], x[:, prefix + first : prefix + last]], axis=1)

    # At most 16 blocks, so that the program stays small at long contexts.
    block = max(block_size, -(-T // 16)) if whole else T
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first, last = 0, S
        if whole:
            last = stop
            first = 0 if window is None else max(0, start - window + 1)
        outputs.append(
            _attend(
                q_BTHK[:, start:stop],
                keys(k_BSGK, first, last),
                keys(v_BSGK, first, last),
                q_offset + jnp.arange(start, stop),
                np.concatenate([np.arange(-prefix, 0), np.arange(first, last)]),
                None if q_segments_BT is None else q_segments_BT[:, start:stop],
                None if kv_segments_BS is None else keys(kv_segments_BS, first, last),
                scale,
                window,
                softcap,
                slopes_H,
            )
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def attention_for(platform: str, implementation: str = "auto") -> AttentionFn:
    """The attention of a platform ("tpu", "gpu", "cpu") or a named one ("xla", "splash", "cudnn")."""
    if implementation == "auto":
        implementation = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla")
    if implementation == "xla":
        return xla_attention
    if implementation == "splash":
        from slmjax.models.attention.splash import splash_attention

        return splash_attention
    if implementation == "cudnn":
        from slmjax.models.attention.cudnn import cudnn_attention

        return cudnn_attention
    raise UserError(f"training.attention is {implementation!r}; choose one of auto, xla, splash, cudnn.")
