"""Where activations lie: a handful of named constraints, and attention run shard by shard."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.errors import UserError
from slmjax.models.attention.kernels import AttentionFn
from slmjax.models.config import ModelConfig
from slmjax.models.execution import sum_rows
from slmjax.sharding.mesh import BATCH, WEIGHTS, divides

_NAMED = {
    "table": ("tensor", None),  # [V, E], gathered for the lookup
    "embedding": (BATCH, "sequence", None),  # [B, T, D], the first residual
    "residual": (BATCH, "sequence", None),  # [B, T, D]
    "ffn": (BATCH, "sequence", "tensor"),  # [B, T, F]
    "heads": (BATCH, "sequence", "tensor", None),  # [B, T, H, K]
}


def make_constrain(mesh: Mesh) -> Callable[[jax.Array, str], jax.Array]:
    """The `Execution.constrain` of a mesh; dimensions that an axis does not divide stay whole (a batch of 1, say)."""

    def constrain(x: jax.Array, name: str) -> jax.Array:
        spec = P(*(a if divides(mesh, a, n) else None for a, n in zip(_NAMED[name], x.shape, strict=True)))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return constrain


def sharded_sum_rows(mesh: Mesh) -> Callable[[int, jax.Array, jax.Array], jax.Array]:
    """The `Execution.sum_rows` of a mesh: each device sums over its own tokens, then one reduce-scatter.

    Left to itself the compiler sums the whole table on every device and cuts it afterwards.
    """

    def run(num_rows: int, ids_BT: jax.Array, dy_BTE: jax.Array) -> jax.Array:
        B, T, E = dy_BTE.shape
        rows = BATCH if divides(mesh, BATCH, B) else None
        positions = "sequence" if divides(mesh, "sequence", T) else None
        if rows is None or positions is None or not divides(mesh, WEIGHTS, E):
            return sum_rows(num_rows, ids_BT, dy_BTE)
        vocab = "tensor" if divides(mesh, "tensor", num_rows) else None

        def device(ids, dy):
            share = num_rows // mesh.shape["tensor"] if vocab else num_rows
            ids = ids - (jax.lax.axis_index("tensor") * share if vocab else 0)
            ids = jnp.where(ids < 0, share, ids)  # a negative index would count from the end
            table = jax.lax.psum_scatter(sum_rows(share, ids, dy), WEIGHTS, scatter_dimension=1, tiled=True)
            return jax.lax.psum(table, "data")

        specs = (P(rows, positions), P(rows, positions, None))
        mapped = jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=P(vocab, WEIGHTS), check_vma=False)
        return mapped(ids_BT, dy_BTE)

    return run


def check_mesh_fits(config: ModelConfig, mesh: Mesh, sequence_length: int) -> None:
    """UserError when the tensor axis does not divide the heads, or the sequence axis the positions."""
    tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
    for i, layer in enumerate(config.layers):
        if layer.num_heads % tensor:
            raise UserError(
                f"model.num_heads={layer.num_heads} (layer {i}) is not a multiple of mesh.tensor={tensor}: "
                "each tensor shard must hold whole heads."
            )
        if layer.num_kv_heads % tensor and tensor % layer.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={layer.num_kv_heads} (layer {i}) and mesh.tensor={tensor}: "
                "one must be a multiple of the other."
            )
    if sequence_length % sequence:
        raise UserError(
            f"data.sequence_length={sequence_length} is not a multiple of mesh.sequence={sequence}: change one of them."
        )


def sharded_attention(attention: AttentionFn, mesh: Mesh) -> AttentionFn:
    """`attention` run on each device's rows, heads and query positions; keys and values are gathered over `sequence`.

    Without this the compiler would have to partition a custom kernel, which it cannot.
    """
    tensor, shards = mesh.shape["tensor"], mesh.shape["sequence"]

    def run(q_BTHK, k_BSGK, v_BSGK, *, q_segments_BT, kv_segments_BS, q_offset, slopes_H, **kwargs):
        B, T, _, _ = q_BTHK.shape
        G = k_BSGK.shape[2]
        if G % tensor:  # fewer key/value heads than shards: each shard gets a copy of the one that it needs
            k_BSGK, v_BSGK = (jnp.repeat(x, tensor // G, axis=2) for x in (k_BSGK, v_BSGK))
        rows = BATCH if divides(mesh, BATCH, B) else None
        split = shards > 1 and T % shards == 0 and isinstance(q_offset, int)
        q_positions = "sequence" if split else None
        q_spec, kv_spec = P(rows, q_positions, "tensor", None), P(rows, None, "tensor", None)
        seg_spec, kv_seg_spec = P(rows, q_positions), P(rows, None)
        kernel, kernel_spec = None, None
        if split and getattr(attention, "__name__", "") == "splash_attention":
            from slmjax.models.attention.splash import fits_splash, run_splash, splash_kernel

            if fits_splash(q_BTHK, k_BSGK, q_offset, slopes_H, shards):
                heads = q_BTHK.shape[2] // tensor
                kernel = splash_kernel(heads, T, kwargs["window"], kwargs["softcap"], shards=shards)
                kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, P(None, "sequence")))

        def local(q, k, v, q_segments, kv_segments, offset, slopes, kernel):
            if kernel is not None:
                return run_splash(kernel, q, k, v, q_segments, kv_segments, kwargs["scale"])
            start = offset
            if split:
                start = q_offset + jax.lax.axis_index("sequence") * (T // shards)
            elif isinstance(q_offset, int):
                start = q_offset  # static, so that kernels see a whole causal sequence
            return attention(
                q, k, v, q_segments_BT=q_segments, kv_segments_BS=kv_segments, q_offset=start, slopes_H=slopes, **kwargs
            )

        specs = (q_spec, kv_spec, kv_spec, seg_spec, kv_seg_spec, P(), P("tensor"), kernel_spec)
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False)
        offset = jnp.asarray(q_offset, jnp.int32)
        return mapped(q_BTHK, k_BSGK, v_BSGK, q_segments_BT, kv_segments_BS, offset, slopes_H, kernel)

    return run
