"""The compiled half of generation with rows of different lengths; `refilling.py` is the host's."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from slmjax.inference.decoding import NONE, Decoder, new_cache, over_rows
from slmjax.inference.sampling import Sampling, sample
from slmjax.models.kv_cache import SLOTS, KVCache, axis_of_rows
from slmjax.models.transformer import apply_head
from slmjax.peft.forward import forward
from slmjax.peft.prefix_cache import prefix_length

BURST = 8  # tokens drawn before the host looks for rows that have finished


@flax.struct.dataclass
class Rows:
    """State of B rows, each at its own length.

    layers: of a cache. lengths_B: tokens that are in it, of the text. last_B: the token drawn last, not yet in the
    cache. counts_B: tokens drawn. keys_B: of each row's prompt. done_B: the row draws no more. drawn_BN: the tokens of
    the last burst, NONE where a row was done. seen_BV: tokens that the row holds; None without a repetition penalty.
    """

    layers: Any
    lengths_B: jax.Array
    last_B: jax.Array
    counts_B: jax.Array
    keys_B: jax.Array
    done_B: jax.Array
    drawn_BN: jax.Array
    seen_BV: jax.Array | None


@partial(jax.jit, static_argnames=("decoder", "num_rows", "capacity", "penalized"))
def empty_rows(decoder: Decoder, arrays: Any, num_rows: int, capacity: int, penalized: bool) -> Rows:
    """Rows without prompts, with room for `capacity` tokens each."""
    layers = new_cache(decoder, decoder.collections(arrays), num_rows, capacity).layers
    layers = over_rows(decoder.mesh, layers, axis_of_rows)
    zeros_B = jnp.zeros(num_rows, jnp.int32)
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(zeros_B)
    seen_BV = jnp.zeros((num_rows, decoder.model.config.vocab_size), bool) if penalized else None
    drawn_BN = jnp.full((num_rows, BURST), NONE, jnp.int32)
    return Rows(layers, zeros_B, zeros_B, zeros_B, keys_B, jnp.ones(num_rows, bool), drawn_BN, seen_BV)


@partial(jax.jit, static_argnames=("decoder",), donate_argnames=("rows",))
def run_piece(decoder: Decoder, arrays: Any, rows: Rows, source, row, tokens_1T, at, length) -> tuple[Rows, jax.Array]:
    """Run `length` tokens at position `at` of a text into a row, after the first `at` tokens that `source` holds.

    Returns the rows and the hidden state [1, E] of the last of these tokens.
    """
    variables = decoder.collections(arrays)
    prefix = prefix_length(variables.get("peft", {}))
    layer = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, source, 1, axis_of_rows(x)), rows.layers)
    T, S = tokens_1T.shape[1], jax.tree.leaves(layer)[0].shape[SLOTS]
    positions_1T = (at + jnp.arange(T, dtype=jnp.int32))[None]
    cache = KVCache(layer, jnp.ones((1, S), jnp.int32), prefix + at, _behind(positions_1T, S, prefix))
    hidden_1TE, cache = forward(decoder.network, variables, tokens_1T, positions_1T, None, cache, hidden=True)
    layers = jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, row, axis_of_rows(x)), rows.layers, cache.layers
    )
    return rows.replace(layers=layers), hidden_1TE[:, length - 1]  # type: ignore[attr-defined]


def _behind(positions_BT: jax.Array, num_slots: int, prefix: int) -> jax.Array:
    """How far each slot lies behind these positions, int32 [B, T, S]; a prefix is seen by all, at no distance."""
    slots_S = jnp.arange(num_slots) - prefix
    return jnp.where(slots_S < 0, 0, positions_BT[..., None] - slots_S)


@partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames=("rows",))
def draw_first(
    decoder: Decoder, arrays: Any, rows: Rows, row, hidden_1E, key, seen_V, stops, length, sampling: Sampling
) -> tuple[Rows, jax.Array]:
    """Begin a row: draw the first token after a prompt of `length` tokens that has just been run into it.

    Returns that token too, NONE where it is a stop id.
    """
    seen_BV = rows.seen_BV if seen_V is None else rows.seen_BV.at[row].set(seen_V)  # type: ignore[union-attr]
    seen_1V = None if seen_BV is None else jax.lax.dynamic_slice_in_dim(seen_BV, row, 1)
    logits_1V = apply_head(decoder.model, decoder.collections(arrays)["params"], hidden_1E)
    token = sample(logits_1V, jax.random.fold_in(key, 0)[None], sampling, seen_1V)[0]
    stopped = jnp.any(token == stops)
    if seen_BV is not None:
        seen_BV = seen_BV.at[row, token].set(True)
    rows = rows.replace(  # type: ignore[attr-defined]
        lengths_B=rows.lengths_B.at[row].set(length),
        last_B=rows.last_B.at[row].set(token),
        counts_B=rows.counts_B.at[row].set(1),
        keys_B=rows.keys_B.at[row].set(key),
        done_B=rows.done_B.at[row].set(stopped),
        seen_BV=seen_BV,
    )
    return rows, jnp.where(stopped, NONE, token)


@partial(jax.jit, donate_argnames=("rows",))
def end_rows(rows: Rows, ended_B) -> Rows:
    """The rows, of which some draw no more."""
    return rows.replace(done_B=rows.done_B | ended_B)  # type: ignore[attr-defined]


@partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames=("rows",))
def decode_burst(decoder: Decoder, arrays: Any, rows: Rows, stops, limit, sampling: Sampling) -> Rows:
    """Draw `BURST` tokens in each row, or until it is done; they are its `drawn_BN`. limit: tokens of a row."""
    variables = decoder.collections(arrays)
    prefix = prefix_length(variables.get("peft", {}))
    B, S = rows.lengths_B.shape[0], jax.tree.leaves(rows.layers)[0].shape[SLOTS]
    segments_BS = jnp.ones((B, S), jnp.int32)

    def step(carry: tuple[jax.Array, Rows]) -> tuple[jax.Array, Rows]:
        n, rows = carry
        # A row that is done writes where its next token would stand, which nothing sees.
        positions_B1, index_B = rows.lengths_B[:, None], prefix + rows.lengths_B
        rows = rows.replace(layers=over_rows(decoder.mesh, rows.layers, axis_of_rows))  # type: ignore[attr-defined]
        cache = KVCache(rows.layers, segments_BS, index_B, _behind(positions_B1, S, prefix))
        inputs = (rows.last_B[:, None], positions_B1, None, cache)
        hidden_B1E, cache = forward(decoder.network, variables, *inputs, hidden=True)
        logits_BV = apply_head(decoder.model, variables["params"], hidden_B1E[:, -1])
        keys_B = jax.vmap(jax.random.fold_in)(rows.keys_B, rows.counts_B)
        token_B = sample(logits_BV, keys_B, sampling, rows.seen_BV)
        seen_BV = rows.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(B), token_B].set(True)
        ran_B = ~rows.done_B
        done_B = rows.done_B | jnp.any(token_B[:, None] == stops[None, :], axis=1)
        drawn_BN = rows.drawn_BN.at[:, n].set(jnp.where(done_B, NONE, token_B))
        counts_B = rows.counts_B + ran_B
        return n + 1, rows.replace(  # type: ignore[attr-defined]
            layers=cache.layers,
            lengths_B=rows.lengths_B + ran_B,
            last_B=token_B,
            counts_B=counts_B,
            done_B=done_B | (counts_B >= limit),
            drawn_BN=drawn_BN,
            seen_BV=seen_BV,
        )

    rows = rows.replace(drawn_BN=jnp.full((B, BURST), NONE, jnp.int32))  # type: ignore[attr-defined]
    goes_on = lambda carry: (carry[0] < BURST) & ~jnp.all(carry[1].done_B)  # noqa: E731
    return jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), rows))[1]
