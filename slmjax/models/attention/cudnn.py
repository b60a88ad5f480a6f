"""cuDNN's fused attention through jax.nn, for GPU."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from slmjax.models.attention.contract import Mask, Scores


def largest_head() -> int:
    """The largest head size that jax lets cuDNN have here: 256 from Hopper on, 128 before."""
    capabilities = [float(getattr(device, "compute_capability", "9.0")) for device in jax.local_devices()]
    return 256 if min(capabilities) >= 9.0 else 128


@dataclass(frozen=True)
class CudnnAttention:
    """cuDNN's kernel for whole sequences in half precision, without soft cap, ALiBi or prefix.

    cuDNN's packed layout is private to jax and bound to one GPU generation, so documents are isolated by a mask
    [B, 1, T, T], which jax hands to the kernel as an additive bias; MaxText drops the segments here and attends across
    documents. A mask, not a bias of our own: from jax 0.11.2 on, no gradient is then computed for it.
    """

    def supports(self, mask: Mask, scores: Scores, q_BTHK: jax.Array, shards: int = 1) -> bool:
        """Whether the call is of whole sequences, in half precision, with plain scores, on one device's positions.

        jax refuses head sizes off the grid of 8, and odd lengths where documents are isolated and a gradient is taken.
        """
        T, K = q_BTHK.shape[1], q_BTHK.shape[-1]
        whole = mask.is_whole and not mask.prefix and shards == 1
        half_precision = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
        plain = scores.softcap is None and scores.slopes is None
        fitting_head = K % 8 == 0 and largest_head() >= K
        return whole and half_precision and plain and T % 2 == 0 and fitting_head

    def __call__(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores
    ) -> jax.Array:
        """Attention [B, T, H, K] (see `AttentionFn`)."""
        same_document = None
        if mask.q_segments is not None and mask.kv_segments is not None:
            same_document = mask.q_segments[:, None, :, None] == mask.kv_segments[:, None, None, :]
        return jax.nn.dot_product_attention(
            q_BTHK,
            k_BSGK,
            v_BSGK,
            mask=same_document,
            scale=scores.scale,
            is_causal=True,
            local_window_size=None if mask.window is None else (mask.window - 1, 0),
            implementation="cudnn",
        )


cudnn_attention = CudnnAttention()
