"""The static key/value cache of generation: fixed shapes, so that every decoding step is one compiled program."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig

# Keys (after rotation) and values: [B, S, G, K] in the attention of one layer, [repeats, B, S, G, K] in the scan over
# layers; with the layers apart each layer has its own pair of [B, G, S, K], heads first as its attention reads them.
LayerCache = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class KVCache:
    """Keys and values of the first `index` positions of each row.

    `layers[segment][block][repeat of the block]` is a `LayerCache` of [segment repeats, B, S, G, K]; with the layers
    apart it is `layers[segment][segment repeat][block][repeat of the block]`. `segments_BS` is 0 where a position holds
    no token (left padding, or not yet written), so that nothing attends to it.
    """

    layers: Any
    segments_BS: jax.Array
    index: jax.Array | int  # int32 scalar, where the next token is written in all rows; a Python 0 is known to be empty

    @property
    def length(self) -> int:
        """Positions that fit (S)."""
        return self.segments_BS.shape[1]


def empty_cache(
    config: ModelConfig, batch_size: int, length: int, dtype: Any, *, layers_apart: bool = False
) -> KVCache:
    """A cache of `length` positions for `batch_size` rows, all zeros."""
    B, S, K = batch_size, length, config.head_dim

    def pair(spec, repeats: int) -> LayerCache:
        G = spec.num_kv_heads
        shape = (B, G, S, K) if layers_apart else (repeats, B, S, G, K)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    def period(segment):
        return tuple(tuple(pair(spec, segment.repeats) for _ in range(config.block_repeats)) for spec in segment.period)

    layers = tuple(
        tuple(period(segment) for _ in range(segment.repeats)) if layers_apart else period(segment)
        for segment in config.segments
    )
    return KVCache(layers, jnp.zeros((B, S), jnp.int32), jnp.zeros((), jnp.int32))


def write(
    cache: LayerCache, k_BTGK: jax.Array, v_BTGK: jax.Array, index: jax.Array | int, repeat: jax.Array | None
) -> LayerCache:
    """The cache with T new positions at `index`: of layer `repeat` of the scan, or None with layers apart."""

    def put(whole: jax.Array, new_BTGK: jax.Array) -> jax.Array:
        new_BTGK = new_BTGK.astype(whole.dtype)
        if repeat is None:
            return jax.lax.dynamic_update_slice(whole, new_BTGK.swapaxes(1, 2), (0, 0, index, 0))
        return jax.lax.dynamic_update_slice(whole, new_BTGK[None], (repeat, 0, index, 0, 0))

    return put(cache[0], k_BTGK), put(cache[1], v_BTGK)


def read(cache: LayerCache, repeat: jax.Array | None) -> LayerCache:
    """Keys and values [B, S, G, K]: of layer `repeat` of the scan, or None with layers apart."""
    if repeat is None:
        return cache[0].swapaxes(1, 2), cache[1].swapaxes(1, 2)
    keys, values = (jax.lax.dynamic_index_in_dim(array, repeat, keepdims=False) for array in cache)
    return keys, values
