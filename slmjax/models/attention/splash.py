"""Splash attention: the block-sparse flash kernel of jax's Pallas library, for TPU."""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from slmjax.models.attention.kernels import xla_attention

LANES = 128  # the kernel works on tiles of 128 positions
MAX_BLOCK = 512


def fits_splash(q_BTHK, k_BSGK, q_offset, slopes_H, shards: int = 1) -> bool:
    """Whether the kernel covers this call: one whole causal sequence on the 128 grid, without ALiBi."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    whole = isinstance(q_offset, int) and q_offset == 0 and T == S
    return whole and T % (LANES * shards) == 0 and slopes_H is None


def splash_kernel(num_heads: int, length: int, window: int | None, softcap: float | None, *, shards=1, interpret=False):
    """The kernel for causal rows of `length` positions, its block mask cut into `shards` along the queries."""
    block = MAX_BLOCK
    while length // shards % block:
        block //= 2
    shape = (length, length)
    mask: masks.Mask
    if window is None:
        mask = masks.CausalMask(shape, shard_count=shards)
    else:
        mask = masks.LocalMask(shape, window_size=(window - 1, 0), offset=0, shard_count=shards)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * num_heads),
        head_shards=1,
        q_seq_shards=shards,
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="context",
        interpret=interpret,
    )


def run_splash(kernel, q_BTHK, k_BSGK, v_BSGK, q_segments_BT, kv_segments_BS, scale):
    """Apply a kernel to a batch; it knows nothing of the scale, so the queries carry it.

    A row at a time: the kernel writes its log-sum-exp 128 times over, which for all rows at once would be the largest
    array of a rematerialized layer.
    """
    q_BHTK, k_BGSK, v_BGSK = (x.swapaxes(1, 2) for x in (q_BTHK * scale, k_BSGK, v_BSGK))
    segments = None if q_segments_BT is None else splash.SegmentIds(q=q_segments_BT, kv=kv_segments_BS)
    out_BHTK = jax.lax.map(lambda row: kernel(*row), (q_BHTK, k_BGSK, v_BGSK, segments))
    return out_BHTK.swapaxes(1, 2).astype(q_BTHK.dtype)


def splash_attention(
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
    interpret=False,
):
    """Splash attention (see `AttentionFn`). Decoding steps, ALiBi and lengths off the 128 grid go to XLA."""
    if not fits_splash(q_BTHK, k_BSGK, q_offset, slopes_H):
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
    kernel = splash_kernel(q_BTHK.shape[2], q_BTHK.shape[1], window, softcap, interpret=interpret)
    return run_splash(kernel, q_BTHK, k_BSGK, v_BSGK, q_segments_BT, kv_segments_BS, scale)
