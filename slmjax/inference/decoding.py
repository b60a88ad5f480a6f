"""The compiled half of generation: one prefill, then a loop of decoding steps over a static key/value cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.inference.sampling import Sampling, sample
from slmjax.models.kv_cache import KVCache, empty_cache
from slmjax.models.transformer import Transformer, apply_head
from slmjax.peft.forward import Network, forward
from slmjax.peft.prefix_cache import prefix_length, start_cache

NONE = -1  # in place of a token, where a row has stopped


def _unchanged(arrays: Any) -> Any:
    return arrays


@dataclass(frozen=True)
class Decoder:
    """A network to draw tokens from, without its arrays, which are given beside it.

    Attributes:
        network: what is run.
        collections: from the arrays that are given to the collections that `forward` takes. It runs inside the compiled
            programs, so that a training state is used as it lies: nothing of it is copied.
        mesh: over which the arrays lie, where that is more than one device: what is drawn is then on every device, so
            that each process reads it. None: wherever it comes out.
    """

    network: Network
    collections: Callable[[Any], Any] = _unchanged
    mesh: jax.sharding.Mesh | None = None

    @property
    def model(self) -> Transformer:
        """The network's own modules and how they are run."""
        return self.network.model


def over_rows(mesh: jax.sharding.Mesh | None, tree: Any, axis: Callable[[jax.Array], int] = lambda array: 0) -> Any:
    """The arrays of a program with their rows over the mesh's data and fsdp, where they can be divided so.

    axis: that of an array's rows.
    """
    if mesh is None:
        return tree

    def constrain(array: jax.Array) -> jax.Array:
        at = axis(array)
        if array.shape[at] % (mesh.shape["data"] * mesh.shape["fsdp"]):
            return array
        spec = P(*(None,) * at, ("data", "fsdp"))
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return jax.tree.map(constrain, tree)


@flax.struct.dataclass
class DecodeState:
    """State that decoding carries from token to token."""

    cache: KVCache | None  # None: nothing has been run
    keys_B: jax.Array  # of each row; its n-th token is drawn with n folded in
    lengths_B: jax.Array  # of the prompts, tokens of earlier turns included
    done_B: jax.Array  # a stop token was drawn
    tokens_BN: jax.Array  # drawn so far
    seen_BV: jax.Array | None  # tokens that the row holds; None without a repetition penalty
    count: jax.Array  # tokens drawn for each row


def initial_state(key: jax.Array, lengths_B: Any, capacity: int, seen_BV: Any = None) -> DecodeState:
    """The state of prompts of these lengths, with room for `capacity` new tokens each."""
    lengths_B = jnp.asarray(lengths_B, jnp.int32)
    B = lengths_B.shape[0]
    return DecodeState(
        cache=None,
        keys_B=_row_keys(key, B),
        lengths_B=lengths_B,
        done_B=jnp.zeros(B, bool),
        tokens_BN=jnp.full((B, capacity), NONE, jnp.int32),
        seen_BV=seen_BV,
        count=jnp.zeros((), jnp.int32),
    )


@partial(jax.jit, static_argnums=1)
def _row_keys(key: jax.Array, num_rows: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_rows))


@partial(jax.jit, static_argnames=("decoder", "length", "sampling"))
def prefill(
    decoder: Decoder, arrays, state: DecodeState, length: int, inputs, stops, sampling: Sampling
) -> DecodeState:
    """Run the prompts into a new cache of `length` positions and draw the first tokens.

    arrays: the network's, as `decoder.collections` takes them.

    inputs: tokens, positions and segments (0 where padded on the left), int32 [B, T] each. stops: ids that end a row.
    """
    variables = decoder.collections(arrays)
    cache = new_cache(decoder, variables, inputs[0].shape[0], length)
    if not prefix_length(variables.get("peft", {})):
        # Known to be empty: the prompts attend to themselves alone.
        cache = cache.replace(index=0)  # type: ignore[attr-defined]
    return _draw(decoder, variables, state.replace(cache=cache), inputs, stops, sampling)  # type: ignore[attr-defined]


def new_cache(decoder: Decoder, variables: Any, batch_size: int, length: int) -> KVCache:
    """A cache with room for `length` positions of text, behind the prefix where there is one."""
    run, added = decoder.model.execution, variables.get("peft", {})
    length += prefix_length(added)
    cache = empty_cache(decoder.model.config, batch_size, length, run.dtype, stacked=run.is_stacked)
    return start_cache(cache, added)


@partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames=("state",))
def extend(decoder: Decoder, arrays, state: DecodeState, tokens_BT, length, stops, sampling: Sampling) -> DecodeState:
    """Run the next `length` tokens of each row, padded on the right to T, into the state's cache; draw what follows.

    The cache must have room for T more, and no padding so far. What padding writes is never seen: it lies ahead of
    every query until it is written over.
    """
    variables = decoder.collections(arrays)
    start = state.cache.index  # type: ignore[union-attr]
    text_start = start - prefix_length(variables.get("peft", {}))
    # Padding stays at the last token's position: it must not make the text longer, which LongRoPE would go by.
    positions_T = text_start + jnp.minimum(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), length - 1)
    positions_BT = jnp.broadcast_to(positions_T, tokens_BT.shape)
    inputs = tokens_BT, positions_BT, jnp.ones_like(tokens_BT)
    state = _draw(decoder, variables, state, inputs, stops, sampling, last=length - 1)
    return state.replace(cache=state.cache.replace(index=start + length))  # type: ignore[attr-defined, union-attr]


@partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames=("state",))
def decode(decoder: Decoder, arrays, state: DecodeState, until, stops, sampling: Sampling) -> DecodeState:
    """Draw until each row has `until` tokens or all have stopped."""
    variables = decoder.collections(arrays)
    segments_B1 = jnp.ones((state.lengths_B.shape[0], 1), jnp.int32)

    def body(state: DecodeState) -> DecodeState:
        last_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BN, state.count - 1, 1, axis=1)
        positions_B1 = (state.lengths_B + state.count - 1)[:, None]
        # A row that has stopped is fed token 0; nothing reads what comes of it.
        inputs = jnp.maximum(last_B1, 0), positions_B1, segments_B1
        return _draw(decoder, variables, state, inputs, stops, sampling)

    return jax.lax.while_loop(lambda state: (state.count < until) & ~jnp.all(state.done_B), body, state)


def _draw(decoder: Decoder, variables, state: DecodeState, inputs, stops, sampling: Sampling, last=-1) -> DecodeState:
    """Run T tokens a row through the cache and draw the one that follows the `last` of them."""
    model, (tokens_BT, positions_BT, segments_BT) = decoder.model, inputs
    inputs = (tokens_BT, positions_BT, segments_BT, state.cache)
    hidden_BTE, cache = forward(decoder.network, variables, *inputs, hidden=True)
    logits_BV = apply_head(model, variables["params"], hidden_BTE[:, last])
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys_B, state.count)
    token_B = sample(logits_BV, keys_B, sampling, state.seen_BV)
    seen_BV = state.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(token_B.shape[0]), token_B].set(True)
    done_B = state.done_B | jnp.any(token_B[:, None] == stops[None, :], axis=1)
    token_B = jnp.where(done_B, NONE, token_B)
    tokens_BN = jax.lax.dynamic_update_slice(state.tokens_BN, token_B[:, None], (0, state.count))
    if decoder.mesh is not None:
        done_B, tokens_BN = jax.lax.with_sharding_constraint((done_B, tokens_BN), NamedSharding(decoder.mesh, P()))
    return state.replace(  # type: ignore[attr-defined]
        cache=cache, seen_BV=seen_BV, done_B=done_B, tokens_BN=tokens_BN, count=state.count + 1
    )
