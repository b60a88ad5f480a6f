"""How far a network's predictions are from its base's, token by token, without holding the logits of all tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from slmjax.models.config import ModelConfig
from slmjax.models.transformer import scale_logits
from slmjax.objectives.chunks import LOGITS_BYTES, chunk_logits, chunk_size, cut
from slmjax.sharding.activations import divides
from slmjax.sharding.mesh import BATCH

Side = tuple[jax.Array, jax.Array, jax.Array | None]  # hidden states [B, T, E], head's kernel [E, V], bias [V] or None


def linear_divergence(
    base: Side, network: Side, *, config: ModelConfig, mesh: Mesh | None = None, logits_bytes: int = LOGITS_BYTES
) -> jax.Array:
    """KL(p_base || p_network) of each token's next one, float32 [B, T], in nats.

    Logits are x @ kernel + bias in float32, then the family's divisor and soft cap. A chunk of tokens at a time is
    visited, forward and again in the backward pass; the float32 logits of both sides together stay within
    `logits_bytes`. Differentiable in the network's side; the base's is a constant. On a mesh each device works on its
    own tokens with both heads gathered.
    """
    sides = [(x, kernel.astype(x.dtype), bias) for x, kernel, bias in (jax.lax.stop_gradient(base), network)]
    run = partial(_on_device, config, logits_bytes)
    if mesh is None or mesh.size == 1:
        return run(*sides)
    B, T, _ = network[0].shape
    tokens = P(BATCH if divides(mesh, BATCH, B) else None, "sequence" if divides(mesh, "sequence", T) else None)
    specs = tuple((P(*tokens, None), P(), None if bias is None else P()) for _, _, bias in sides)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)(*sides)


def _on_device(config: ModelConfig, logits_bytes: int, base: Side, network: Side) -> jax.Array:
    """The divergence of one device's tokens."""
    B, T, _ = network[0].shape
    chunk = chunk_size(B * T, network[1].shape[1], logits_bytes // 2)

    @jax.checkpoint
    def body(carry: None, piece: Any) -> tuple[None, jax.Array]:
        base_NV, ours_NV = (
            jax.nn.log_softmax(scale_logits(config, chunk_logits(x_NE, kernel_EV, bias_V)))
            for x_NE, (_, kernel_EV, bias_V) in zip(piece, (base, network), strict=True)
        )
        return carry, jnp.sum(jnp.exp(base_NV) * (base_NV - ours_NV), axis=-1)

    pieces = tuple(cut(a_BTE.reshape(B * T, -1), chunk) for a_BTE, *_ in (base, network))
    _, divergence = jax.lax.scan(body, None, pieces)
    return divergence.reshape(-1)[: B * T].reshape(B, T)
