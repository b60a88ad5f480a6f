"""Sharding of activations: a handful of named constraints, and attention run shard by shard."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.errors import UserError
from slmjax.models.attention.contract import AttentionFn, Mask, OverSequence, Scores
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
    """The `Execution.embedding_gradient` of a mesh: each device sums over its own tokens, then one reduce-scatter.

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

    def run(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores) -> jax.Array:
        B, T, _, _ = q_BTHK.shape
        G = k_BSGK.shape[2]
        if G % tensor:  # fewer key/value heads than shards: each shard gets a copy of the one that it needs
            k_BSGK, v_BSGK = (jnp.repeat(x, tensor // G, axis=2) for x in (k_BSGK, v_BSGK))
        rows = BATCH if divides(mesh, BATCH, B) else None
        split = shards > 1 and T % shards == 0 and mask.is_whole and isinstance(attention, OverSequence)
        q_positions = "sequence" if split else None
        q_spec, kv_spec = P(rows, q_positions, "tensor", None), P(rows, None, "tensor", None)
        operands, operand_specs, call = None, None, lambda _, *arguments: attention(*arguments)
        if split and isinstance(attention, OverSequence):
            operands, operand_specs, call = attention.over_sequence(mesh, mask, scores, q_BTHK)
        in_specs = (
            (operand_specs, q_spec, kv_spec, kv_spec)
            + (mask.replace(q_segments=P(rows, q_positions), kv_segments=P(rows, None), offset=P()),)  # type: ignore[attr-defined]
            + (scores.replace(slopes=P("tensor")),)  # type: ignore[attr-defined]
        )
        mapped = jax.shard_map(call, mesh=mesh, in_specs=in_specs, out_specs=q_spec, check_vma=False)
        return mapped(operands, q_BTHK, k_BSGK, v_BSGK, mask, scores)

    return run
