"""Splash attention: the block-sparse flash kernel of jax's Pallas library, for TPU."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.models.attention.contract import Mask, Scores, SequenceCall

LANES = 128  # the kernel works on tiles of 128 positions
MAX_BLOCK = 512  # positions of a block; splash's own defaults are 128, this one is not measured against others


@dataclass(frozen=True)
class SplashAttention:
    """The kernel for whole sequences on the grid of 128 positions, without ALiBi or prefix."""

    interpret: bool = False  # in Pallas's interpreter, on any platform

    def supports(self, mask: Mask, scores: Scores, q_BTHK: jax.Array, shards: int = 1) -> bool:
        """Whether the call is of whole sequences of a multiple of 128 positions on each device, without ALiBi."""
        whole = mask.is_whole and not mask.prefix
        return whole and q_BTHK.shape[1] % (LANES * shards) == 0 and scores.slopes is None

    def __call__(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores
    ) -> jax.Array:
        """Attention [B, T, H, K] (see `AttentionFn`)."""
        kernel = self._kernel(q_BTHK.shape[2], q_BTHK.shape[1], mask, scores)
        return _run(kernel, q_BTHK, k_BSGK, v_BSGK, mask, scores)

    def over_sequence(self, mesh: Mesh, mask: Mask, scores: Scores, q_BTHK: jax.Array) -> SequenceCall:
        """The kernel with its block mask cut along the queries."""
        heads, shards = q_BTHK.shape[2] // mesh.shape["tensor"], mesh.shape["sequence"]
        kernel = self._kernel(heads, q_BTHK.shape[1], mask, scores, shards)
        return SequenceCall(kernel, kernel.manual_sharding_spec(NamedSharding(mesh, P(None, "sequence"))), _run)

    def _kernel(self, num_heads: int, length: int, mask: Mask, scores: Scores, shards: int = 1):
        """The kernel for causal rows of `length` positions, its block mask cut into `shards` along the queries."""
        block = MAX_BLOCK
        while length // shards % block:
            block //= 2
        shape = (length, length)
        causal: masks.Mask
        if mask.window is None:
            causal = masks.CausalMask(shape, shard_count=shards)
        else:
            causal = masks.LocalMask(shape, window_size=(mask.window - 1, 0), offset=0, shard_count=shards)
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
            mask=masks.MultiHeadMask([causal] * num_heads),
            head_shards=1,
            q_seq_shards=shards,
            block_sizes=sizes,
            attn_logits_soft_cap=scores.softcap,
            residual_checkpoint_name="context",
            interpret=self.interpret,
        )


def _run(kernel, q_BTHK, k_BSGK, v_BSGK, mask: Mask, scores: Scores) -> jax.Array:
    """Apply a kernel to a batch; it knows nothing of the scale, so the queries carry it.

    A row at a time: the kernel writes its log-sum-exp 128 times over, which for all rows at once would be the largest
    array of a rematerialized layer.
    """
    q_BHTK, k_BGSK, v_BGSK = (x.swapaxes(1, 2) for x in (q_BTHK * scores.scale, k_BSGK, v_BSGK))
    segments = None
    if mask.q_segments is not None and mask.kv_segments is not None:
        segments = splash.SegmentIds(q=mask.q_segments, kv=mask.kv_segments)
    out_BHTK = jax.lax.map(lambda row: kernel(*row), (q_BHTK, k_BGSK, v_BGSK, segments))
    return out_BHTK.swapaxes(1, 2).astype(q_BTHK.dtype)


splash_attention = SplashAttention()
