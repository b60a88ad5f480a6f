"""The contract of attention and its backends: softmax(q k^T * scale + bias) v under a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a fully masked row is not NaN


@flax.struct.dataclass
class Mask:
    """The keys that each query sees: causal, within the window, of its own document.

    A key is visible when its index is at most the query's, fewer than `window` behind it (None: any number), and its
    segment is the query's (None: one segment). The first `prefix` keys stand before index 0: all queries see them, in
    whatever segment and window.

    q_segments: int32 [B, T]. kv_segments: int32 [B, S]. offset: index of the first query among the keys; None: 0, and
    queries and keys (behind the prefix) are those of one whole sequence, which kernels must know when they are traced.
    distances: int32 [B, T, S] in place of segments and prefix: how many tokens each key lies behind the query, negative
    where the query does not see it. No key at or after `offset` + T is seen.
    """

    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    offset: jax.Array | int | None = None
    prefix: int = flax.struct.field(pytree_node=False, default=0)
    distances: jax.Array | None = None

    @property
    def is_whole(self) -> bool:
        """Whether queries and keys are those of one whole sequence, known statically."""
        return self.offset is None


@flax.struct.dataclass
class Scores:
    """The way from a product of query and key to a logit: times `scale`, capped, less ALiBi's slope times distance.

    softcap: c replaces logits x by c * tanh(x / c) before the mask; None: no cap. slopes: float32 [H] of ALiBi, which
    the prefix has none of; None: no bias.
    """

    scale: float = flax.struct.field(pytree_node=False)
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    slopes: jax.Array | None = None


class AttentionFn(Protocol):
    """Attention of q [B, T, H, K] over k and v [B, S, G, K]: [B, T, H, K] in q's dtype.

    H is a multiple of G; query head h reads key/value head h // (H / G). An `AttentionFn` takes every call.
    """

    def __call__(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores
    ) -> jax.Array:
        """Attend."""
        ...


class Backend(AttentionFn, Protocol):
    """A kernel that may not cover every call."""

    def supports(self, mask: Mask, scores: Scores, q_BTHK: jax.Array, shards: int = 1) -> bool:
        """Whether the kernel covers this call, its query positions cut over so many devices."""
        ...


class SequenceCall(NamedTuple):
    """Attention of one device's part of the query positions, for `shard_map`."""

    operands: Any  # arrays that differ from device to device
    specs: Any  # their PartitionSpecs
    # (operands, q [B, T / shards, H, K], k, v, mask of these queries, scores) -> [B, T / shards, H, K]
    call: Callable[..., jax.Array]


@runtime_checkable
class OverSequence(Protocol):
    """A backend that can attend with the query positions cut over the mesh's axis `sequence`."""

    def over_sequence(self, mesh: Mesh, mask: Mask, scores: Scores, q_BTHK: jax.Array) -> SequenceCall:
        """The call for queries q (all positions and heads) of whole sequences."""
        ...
