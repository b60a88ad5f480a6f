"""cuDNN's fused attention through jax.nn, for GPU."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from slmjax.models.attention.contract import Mask, Scores


@dataclass(frozen=True)
class CudnnAttention:
    """cuDNN's kernel for whole sequences in half precision, without soft cap, ALiBi or prefix.

    cuDNN's packed layout is private to jax and bound to one GPU generation, so documents are isolated by an additive
    bias [B, 1, T, T], which the kernel applies; MaxText drops the segments here and attends across documents.
    """

    def supports(self, mask: Mask, scores: Scores, q_BTHK: jax.Array, shards: int = 1) -> bool:
        """Whether the call is of whole sequences, in half precision, with plain scores, on one device's positions."""
        whole = mask.is_whole and not mask.prefix and shards == 1
        plain = scores.softcap is None and scores.slopes is None
        return whole and plain and q_BTHK.dtype in (jnp.bfloat16, jnp.float16)

    def __call__(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores
    ) -> jax.Array:
        """Attention [B, T, H, K] (see `AttentionFn`)."""
        bias = None
        if mask.q_segments is not None and mask.kv_segments is not None:
            same = mask.q_segments[:, None, :, None] == mask.kv_segments[:, None, None, :]
            bias = jnp.where(same, 0.0, -1e9 if q_BTHK.dtype == jnp.bfloat16 else -3e4).astype(q_BTHK.dtype)
        return jax.nn.dot_product_attention(
            q_BTHK,
            k_BSGK,
            v_BSGK,
            bias=bias,
            scale=scores.scale,
            is_causal=True,
            local_window_size=None if mask.window is None else (mask.window - 1, 0),
            implementation="cudnn",
        )


cudnn_attention = CudnnAttention()
