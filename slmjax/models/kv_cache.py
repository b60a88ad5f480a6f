"""The static key/value cache of generation: fixed shapes, so that every decoding step is one compiled program."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig


@flax.struct.dataclass
class LayerCache:
    """Keys (after rotation) and values of a layer, or of a stack of layers.

    Stacked, both are [repeats, B, S, G, K] and `repeat` chooses the layer; unstacked, [B, G, S, K] of one layer, heads
    first as `cached_attention` reads them.
    """

    keys: jax.Array
    values: jax.Array
    stacked: bool = flax.struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """Positions that fit (S)."""
        return self.keys.shape[2]

    @property
    def reads_in_blocks(self) -> bool:
        """Whether keys and values lie as `cached_attention` reads them."""
        return not self.stacked

    def write(
        self, k_BTGK: jax.Array, v_BTGK: jax.Array, index: jax.Array | int, repeat: jax.Array | None
    ) -> LayerCache:
        """The cache with T new positions at `index`, of all rows or [B] of each.

        `repeat` is the layer's number in the stack, None unstacked.
        """

        def put(whole: jax.Array, new_BTGK: jax.Array) -> jax.Array:
            new_BTGK = new_BTGK.astype(whole.dtype)
            if jnp.ndim(index) == 1:
                B, T = new_BTGK.shape[:2]
                rows_B1, slots_BT = jnp.arange(B)[:, None], jnp.asarray(index)[:, None] + jnp.arange(T)
                if self.stacked:
                    return whole.at[repeat, rows_B1, slots_BT].set(new_BTGK)
                return whole.at[rows_B1, :, slots_BT].set(new_BTGK)
            if self.stacked:
                assert repeat is not None
                return jax.lax.dynamic_update_slice(whole, new_BTGK[None], (repeat, 0, index, 0, 0))
            return jax.lax.dynamic_update_slice(whole, new_BTGK.swapaxes(1, 2), (0, 0, index, 0))

        return LayerCache(put(self.keys, k_BTGK), put(self.values, v_BTGK), self.stacked)

    def read(self, repeat: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, G, K]; `repeat` is the layer's number in the stack, None unstacked."""
        if not self.stacked:
            return self.keys.swapaxes(1, 2), self.values.swapaxes(1, 2)
        keys, values = (
            jax.lax.dynamic_index_in_dim(array, repeat, keepdims=False) for array in (self.keys, self.values)
        )
        return keys, values

    def read_heads_first(self, repeat: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, G, S, K], as `cached_attention` reads them."""
        if not self.stacked:
            return self.keys, self.values
        keys, values = self.read(repeat)
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def with_prefix(self, keys: jax.Array, values: jax.Array) -> LayerCache:
        """The cache with these keys and values [n, G, K] or [B, n, G, K] in its first positions.

        Stacked, they have a leading axis of layers.
        """

        def fill(whole: jax.Array, prefix: jax.Array) -> jax.Array:
            if self.stacked:
                prefix = prefix if prefix.ndim == 5 else prefix[:, None]
            else:
                prefix = (prefix if prefix.ndim == 4 else prefix[None]).swapaxes(1, 2)
            n = prefix.shape[2]
            shape = (*whole.shape[:2], n, *whole.shape[3:])
            return whole.at[:, :, :n].set(jnp.broadcast_to(prefix.astype(whole.dtype), shape))

        return LayerCache(fill(self.keys, keys), fill(self.values, values), self.stacked)


SLOTS = 2  # the axis of positions in the arrays of a layer's cache, stacked or not


def axis_of_rows(array: jax.Array) -> int:
    """The axis of rows in an array of a layer's cache: behind the layers, where they are stacked."""
    return array.ndim - 4


@flax.struct.dataclass
class KVCache:
    """Keys and values of the first `index` positions of each row.

    `layers[segment][block][repeat of the block]` is a `LayerCache`; unstacked it is
    `layers[segment][segment repeat][block][repeat of the block]`. `segments_BS` is 0 where a position holds no token
    (left padding, or not yet written), so that nothing attends to it. Where `distances_BTS` is given for the next
    tokens, it alone says what they see (`attention.contract.Mask`), their positions must be given too, and `index` may
    be [B], a place for each row.
    """

    layers: Any
    segments_BS: jax.Array
    index: jax.Array | int  # int32 scalar, where the next token is written in all rows; a Python 0 is known to be empty
    distances_BTS: jax.Array | None = None


def empty_cache(config: ModelConfig, batch_size: int, length: int, dtype: Any, *, stacked: bool = True) -> KVCache:
    """A cache of `length` positions for `batch_size` rows, all zeros; stacked as `Execution.is_stacked` says."""
    B, S, K = batch_size, length, config.head_dim

    def layer(spec, repeats: int) -> LayerCache:
        G = spec.num_kv_heads
        shape = (repeats, B, S, G, K) if stacked else (B, G, S, K)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), stacked)

    def period(segment):
        return tuple(
            tuple(layer(spec, segment.repeats) for _ in range(config.block_repeats)) for spec in segment.period
        )

    layers = tuple(
        period(segment) if stacked else tuple(period(segment) for _ in range(segment.repeats))
        for segment in config.segments
    )
    return KVCache(layers, jnp.zeros((B, S), jnp.int32), jnp.zeros((), jnp.int32))
