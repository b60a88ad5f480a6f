"""Keys and values that stand before every document: as a collection, and in the cache of generation."""

from __future__ import annotations

from typing import Any

from slmjax.models.kv_cache import KVCache
from slmjax.models.parameters import flatten


def prefix_of_cache(cache: KVCache) -> dict:
    """A cache of one row as a collection: `prefix_key` and `prefix_value` [repeats, n, G, K] in each attention."""
    return {
        f"segment_{s}": {
            f"block_{b}": {"attention": {"prefix_key": repeats[0].keys[:, 0], "prefix_value": repeats[0].values[:, 0]}}
            for b, repeats in enumerate(blocks)
        }
        for s, blocks in enumerate(cache.layers)
    }


def prefix_length(collection: Any) -> int:
    """How many positions the prefix takes; 0 where there is none."""
    lengths = [leaf.shape[-3] for path, leaf in flatten(collection).items() if path.endswith("/prefix_key")]
    return lengths[0] if lengths else 0


def start_cache(cache: KVCache, collection: Any) -> KVCache:
    """An empty cache with the prefix in its first positions, as `forward` expects it; unchanged without a prefix.

    Both are stacked, or both are unstacked (see `KVCache`).
    """
    n = prefix_length(collection)
    if not n:
        return cache

    def period(ours, blocks):
        def with_prefix(b, cached):
            added = ours[f"block_{b}"]["attention"]
            return cached.with_prefix(added["prefix_key"], added["prefix_value"])

        return tuple(tuple(with_prefix(b, cached) for cached in repeats) for b, repeats in enumerate(blocks))

    def segment(ours, held):
        if isinstance(ours, tuple):  # unstacked
            return tuple(period(*layer) for layer in zip(ours, held, strict=True))
        return period(ours, held)

    layers = tuple(segment(collection[f"segment_{s}"], held) for s, held in enumerate(cache.layers))
    return KVCache(layers, cache.segments_BS.at[:, :n].set(1), cache.index + n)
