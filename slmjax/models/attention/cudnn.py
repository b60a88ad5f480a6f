"""cuDNN's fused attention through jax.nn, for GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slmjax.models.attention.kernels import xla_attention


def largest_head() -> int:
    """The largest head size that jax lets cuDNN have here: 256 from Hopper on, 128 before."""
    capabilities = [float(getattr(device, "compute_capability", "9.0")) for device in jax.local_devices()]
    return 256 if min(capabilities) >= 9.0 else 128


def fits_cudnn(q_BTHK, k_BSGK, q_offset, softcap, slopes_H) -> bool:
    """Whether the kernel covers this call: one whole causal sequence in half precision, plain softmax.

    jax refuses head sizes off the grid of 8, and odd lengths where documents are isolated and a gradient is taken.
    """
    T, S, K = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[-1]
    whole = isinstance(q_offset, int) and q_offset == 0 and T == S
    half_precision = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
    plain = softcap is None and slopes_H is None
    fitting_head = K % 8 == 0 and largest_head() >= K
    return whole and half_precision and plain and T % 2 == 0 and fitting_head


def cudnn_attention(
    q_BTHK, k_BSGK, v_BSGK, *, q_segments_BT, kv_segments_BS, q_offset, scale, window, softcap, slopes_H, prefix=0
):
    """cuDNN attention (see `AttentionFn`). Soft caps, ALiBi, decoding steps, float32 and odd sizes go to XLA.

    cuDNN's packed layout is private to jax and bound to one GPU generation, so documents are isolated by a mask
    [B, 1, T, T], which jax hands to the kernel as an additive bias; MaxText drops the segments here and attends across
    documents. A mask, not a bias of our own: from jax 0.11.2 on, no gradient is then computed for it.
    """
    if not fits_cudnn(q_BTHK, k_BSGK, q_offset, softcap, slopes_H):
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
    mask = None
    if q_segments_BT is not None:
        mask = q_segments_BT[:, None, :, None] == kv_segments_BS[:, None, None, :]
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        mask=mask,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
