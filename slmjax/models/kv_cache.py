"""The static key/value cache of generation: fixed shapes, so that every decoding step is one compiled program."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig

LayerCache = tuple[jax.Array, jax.Array]  # keys (after rotation) and values, [B, S, G, K]


@flax.struct.dataclass
class KVCache:
    """Keys and values of the first `index` positions of each row.

    `layers[segment][block][repeat]` is a pair (keys, values) of [segment repeats, B, S, G, K]; `segments_BS` is 0 where
    a position holds no token (left padding, or not yet written), so that nothing attends to it.
    """

    layers: Any
    segments_BS: jax.Array  # noqa: N815
    index: jax.Array  # int32 scalar: where the next token is written, the same for all rows

    @property
    def length(self) -> int:
        """Positions that fit (S)."""
        return self.segments_BS.shape[1]


def empty_cache(config: ModelConfig, batch_size: int, length: int, dtype: Any) -> KVCache:
    """A cache of `length` positions for `batch_size` rows, all zeros."""

    def layer(spec, repeats):
        shape = (repeats, batch_size, length, spec.num_kv_heads, config.head_dim)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    layers = tuple(
        tuple(tuple(layer(spec, segment.repeats) for _ in range(config.block_repeats)) for spec in segment.period)
        for segment in config.segments
    )
    return KVCache(layers, jnp.zeros((batch_size, length), jnp.int32), jnp.zeros((), jnp.int32))


def write(cache: LayerCache, k_BTGK: jax.Array, v_BTGK: jax.Array, index: jax.Array) -> LayerCache:
    """The layer's cache with T new positions written at `index`."""
    start = (0, index, 0, 0)
    keys = jax.lax.dynamic_update_slice(cache[0], k_BTGK.astype(cache[0].dtype), start)
    values = jax.lax.dynamic_update_slice(cache[1], v_BTGK.astype(cache[1].dtype), start)
    return keys, values
