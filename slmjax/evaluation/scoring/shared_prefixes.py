"""The compiled half of scoring: chunks of a trie, each run after a cache that holds the path to it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.inference.decoding import Decoder, new_cache, over_rows
from slmjax.models.kv_cache import SLOTS, KVCache, axis_of_rows
from slmjax.models.transformer import head_weights, scale_logits
from slmjax.peft.forward import forward
from slmjax.peft.prefix_cache import prefix_length

NOT_SEEN = -1
VOCABULARY_BLOCK = 4096  # tokens whose logits are computed at once


@partial(jax.jit, static_argnames=("decoder", "num_rows", "capacity"))
def empty_path(decoder: Decoder, arrays: Any, num_rows: int, capacity: int) -> Any:
    """The layers of a cache with room for a path of `capacity` tokens in each row, after the prefix if it has one."""
    layers = new_cache(decoder, decoder.collections(arrays), num_rows, capacity).layers
    return over_rows(decoder.mesh, layers, axis_of_rows)


@partial(jax.jit, static_argnames=("decoder", "seen"), donate_argnames=("path",))
def run_chunk(decoder: Decoder, arrays: Any, path: Any, chunk: Any, seen: int) -> tuple[jax.Array, Any]:
    """Hidden states [B, T, E] of a chunk's nodes, and the path to the last of them.

    path: layers of a cache of `capacity` slots, one a depth. chunk: int32 arrays as in `trie.Chunk`, with a leading
    axis of rows. seen: how many slots of the path any node sees, at most.
    """
    variables = decoder.collections(arrays)
    chunk = over_rows(decoder.mesh, tuple(map(jnp.asarray, chunk)))
    tokens_BT, depths_BT, ends_BT, floors_BT, sources_BC = chunk
    B, T = tokens_BT.shape
    prefix = prefix_length(variables.get("peft", {}))
    S, capacity = prefix + seen, sources_BC.shape[1]

    slots_S = jnp.arange(S) - prefix
    behind_BTS = jnp.where(slots_S < floors_BT[..., None], depths_BT[..., None] - slots_S, NOT_SEEN)
    behind_BTS = jnp.where(slots_S < 0, 0, behind_BTS)  # a prefix is seen by all, at no distance
    place_T = jnp.arange(T)
    above_BTT = (place_T[:, None] >= place_T) & (place_T[:, None] < ends_BT[:, None, :])
    within_BTT = jnp.where(above_BTT, depths_BT[:, :, None] - depths_BT[:, None, :], NOT_SEEN)
    distances_BTS = jnp.concatenate([behind_BTS, within_BTT], axis=2)

    def with_room(array: jax.Array) -> jax.Array:
        part = jax.lax.slice_in_dim(array, 0, S, axis=SLOTS)
        room = [(0, 0)] * array.ndim
        room[SLOTS] = (0, T)
        return jnp.pad(part, room)

    segments_BS = jnp.ones((B, S + T), jnp.int32)
    cache = KVCache(jax.tree.map(with_room, path), segments_BS, jnp.asarray(S, jnp.int32), distances_BTS)
    inputs = (tokens_BT, depths_BT, None, cache)
    hidden_BTE, cache = forward(decoder.network, variables, *inputs, hidden=True)

    # Where a depth's node lies now: in the path as it was, or in the chunk, which begins at slot S.
    moved_BC = jnp.where(sources_BC >= capacity, S + sources_BC - capacity, prefix + sources_BC)
    width = min(capacity, seen + T)  # no node of the chunk is deeper

    def with_path(old: jax.Array, new: jax.Array) -> jax.Array:
        # A row's path beyond what is seen stays as it was: nothing above it was left.
        rows = axis_of_rows(old)
        index = moved_BC[:, :width]
        shape = [1] * new.ndim
        shape[rows], shape[SLOTS] = B, width
        taken = jnp.take_along_axis(new, jnp.minimum(index, S + T - 1).reshape(shape), axis=SLOTS)
        return jax.lax.dynamic_update_slice_in_dim(old, taken, prefix, axis=SLOTS)

    path = over_rows(decoder.mesh, jax.tree.map(with_path, path, cache.layers), axis_of_rows)
    return hidden_BTE, path


@partial(jax.jit, static_argnames=("decoder",))
def read_targets(
    decoder: Decoder, arrays: Any, hidden_BTE: jax.Array, nodes_N: jax.Array, asked_M: jax.Array, targets_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """float32 log-probabilities [M] of `targets_M` after some nodes, and whether each is the most likely token.

    nodes_N: int32, nodes as places in hidden_BTE's rows one after the other. asked_M: int32, each target's place in it.
    The vocabulary is read in blocks, so that logits stay in a CPU's cache and are never held whole.
    """
    model, params = decoder.model, decoder.collections(arrays)["params"]
    kernel_EV, bias_V = head_weights(model.config, params, model.execution.layout)
    kernel_VE = kernel_EV.T.astype(hidden_BTE.dtype)
    hidden_NE = hidden_BTE.reshape(-1, hidden_BTE.shape[-1])[nodes_N]
    V, N = kernel_VE.shape[0], hidden_NE.shape[0]
    size = min(VOCABULARY_BLOCK, V)

    def scaled(logits: jax.Array, ids: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        return scale_logits(model.config, logits if bias_V is None else logits + bias_V[ids])

    def add_block(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        top_N, total_N, best_N = state
        first = jnp.minimum(i * size, V - size)  # the last block may begin inside the one before it
        ids_V1 = (first + jnp.arange(size))[:, None]
        block_VE = jax.lax.dynamic_slice_in_dim(kernel_VE, first, size)
        logits_VN = scaled(jnp.matmul(block_VE, hidden_NE.T, preferred_element_type=jnp.float32), ids_V1)
        logits_VN = jnp.where(ids_V1 >= i * size, logits_VN, -jnp.inf)
        highest_N = logits_VN.max(0)
        first_N = jnp.min(jnp.where(logits_VN == highest_N, ids_V1, V), axis=0)  # an argmax that vectorizes
        new_top = jnp.maximum(top_N, highest_N)
        total_N = total_N * jnp.exp(top_N - new_top) + jnp.exp(logits_VN - new_top).sum(0)
        return new_top, total_N, jnp.where(highest_N > top_N, first_N, best_N)

    nothing = (jnp.full(N, -jnp.inf), jnp.zeros(N), jnp.zeros(N, jnp.int32))
    top_N, total_N, best_N = jax.lax.fori_loop(0, -(-V // size), add_block, nothing)
    targets_ME = kernel_VE[targets_M].astype(jnp.float32)
    own_M = scaled(jnp.sum(hidden_NE[asked_M].astype(jnp.float32) * targets_ME, axis=-1), targets_M)
    return own_M - (top_N + jnp.log(total_N))[asked_M], best_N[asked_M] == targets_M
