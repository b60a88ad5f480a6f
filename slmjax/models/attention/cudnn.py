"""cuDNN's fused attention through jax.nn, for GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slmjax.models.attention.kernels import xla_attention


def cudnn_attention(
    q_BTHK, k_BSGK, v_BSGK, *, q_segments_BT, kv_segments_BS, q_offset, scale, window, softcap, slopes_H, prefix=0
):
    """cuDNN attention (see `AttentionFn`). Soft caps, ALiBi, decoding steps and float32 go to XLA.

    cuDNN's packed layout is private to jax and bound to one GPU generation, so documents are isolated by an additive
    bias [B, 1, T, T], which the kernel applies; MaxText drops the segments here and attends across documents.
    """
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    whole = isinstance(q_offset, int) and q_offset == 0 and T == S
    half_precision = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
    if not whole or softcap is not None or slopes_H is not None or not half_precision:
        return xla_attention(
            q_BTHK,
            k_BSGK,
            v_BSGK,
            q_segments_BT=q_segments_BT,
            kv_segments_BS=kv_segments_BS,
            q_offset=q_offset,
            scale=scale,
            window=window,
            softcap=softcap,
            slopes_H=slopes_H,
            prefix=prefix,
        )
    bias = None
    if q_segments_BT is not None:
        same = q_segments_BT[:, None, :, None] == kv_segments_BS[:, None, None, :]
        bias = jnp.where(same, 0.0, -1e9 if q_BTHK.dtype == jnp.bfloat16 else -3e4).astype(q_BTHK.dtype)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        bias=bias,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
