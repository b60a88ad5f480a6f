"""Generation for many prompts at once: a row that has finished is given the next prompt.

Each row of the cache has its own length. A new prompt is run into a row after what it has in common with the prompt of
any row, whose keys and values are copied.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slmjax.inference.decoding import NONE, Decoder, new_cache, over_rows
from slmjax.inference.generate import bucket, check_prompts, decode_prompts, padded_stops
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.longrope import changes_with_length
from slmjax.inference.sampling import GREEDY, Sampling, require_seed, sample
from slmjax.inference.text import Continuation
from slmjax.models.config import ModelConfig
from slmjax.models.kv_cache import SLOTS, KVCache, axis_of_rows
from slmjax.models.transformer import apply_head
from slmjax.peft.forward import forward
from slmjax.peft.prefix_cache import prefix_length
from slmjax.tokenization.tokenizer import Tokenizer

ROWS = 16  # of a batch: on a CPU a step of 16 takes little longer than one of 4, since it reads the same weights
BURST = 8  # tokens drawn before the host looks for rows that have finished
PIECE = 256  # tokens of a prompt that are run at once


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


def generate_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    stop: Sequence[str] = (),
    rows: int = 0,
    progress: bool = False,
    tell: Callable[[int, list[int]], object] | None = None,
) -> list[list[int]]:
    """Continuations of the prompts' token ids, in their order, of at most `max_new_tokens` each.

    What a prompt gets does not depend on the others, and is what `generate_ids` gives. A stop id ends a row and is not
    in it; a row may go on a little beyond a stop string. rows: how many are generated at once; 0: as many as suit the
    machine. tell: called with a prompt's index and continuation as each ends.
    """
    check_prompts(prompts, max_new_tokens, lm.config.vocab_size, lm.longest_context)
    rows = max(1, min(rows or ROWS, len(prompts)))
    decoder, arrays = lm.decoding(max(rows, 2))  # the layout of several rows, whose caches are written row by row
    decoder = dataclasses.replace(decoder, mesh=lm.mesh)
    config = decoder.model.config
    outputs: dict[int, list[int]] = {}
    with tqdm(total=len(prompts), desc="generate", unit=" prompts", disable=not progress) as bar:

        def end(index: int, ids: list[int]) -> None:
            outputs[index] = ids
            bar.update()
            if tell is not None:
                tell(index, ids)

        apart = [i for i, prompt in enumerate(prompts) if not keys_stay(config, len(prompt) + max_new_tokens)]
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop_ids": stop_ids}
        for i in apart:
            end(i, decode_prompts(decoder, arrays, [prompts[i]], **settings, seed=seed + i)[0])
        together = [i for i in range(len(prompts)) if i not in set(apart)]
        if together:
            run = _Run(decoder, arrays, lm.tokenizer, prompts, rows, stop=stop, seed=seed, **settings)
            for index, ids in run.through(together):
                end(index, ids)
    return [outputs[i] for i in range(len(prompts))]


@dataclass
class _Slot:
    """What is drawn in a row: the prompt's index and the tokens so far."""

    index: int
    ids: list[int]
    text: Continuation | None  # where stop strings are looked for


class _Run:
    """The host's half: which prompt is in which row."""

    def __init__(
        self,
        decoder: Decoder,
        arrays: Any,
        tokenizer: Tokenizer | None,
        prompts: Sequence[Sequence[int]],
        rows: int,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        stop_ids: Sequence[int],
        stop: Sequence[str],
    ):
        self.decoder, self.arrays, self.tokenizer, self.stop = decoder, arrays, tokenizer, tuple(stop)
        self.prompts, self.max_new_tokens, self.sampling = prompts, max_new_tokens, sampling
        self.stops, self.key = padded_stops(stop_ids), jax.random.key(require_seed(seed))
        # A prompt's last piece is padded; what padding writes lies ahead of every query.
        capacity = bucket(max(map(len, prompts))) + PIECE + -(-max_new_tokens // BURST) * BURST
        penalized = sampling.repetition_penalty != 1
        self.rows = empty_rows(decoder, arrays, rows, -(-capacity // PIECE) * PIECE, penalized)
        self.slots: list[_Slot | None] = [None] * rows
        self.known: list[Sequence[int]] = [()] * rows  # the tokens whose keys a row begins with

    def through(self, indices: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """(index, continuation) of each prompt, as each ends."""
        waiting = deque(_order(self.prompts, indices))
        while waiting or any(self.slots):
            for row in range(len(self.slots)):
                while waiting and self.slots[row] is None:
                    drawn = self._fill(row, waiting.popleft())
                    yield from self._add(row, drawn)
            if any(self.slots):
                ended_B = np.asarray([slot is None for slot in self.slots])
                self.rows = end_rows(self.rows, ended_B)
                limits = (self.stops, self.max_new_tokens, self.sampling)
                self.rows = decode_burst(self.decoder, self.arrays, self.rows, *limits)
                drawn_BN = np.asarray(self.rows.drawn_BN)
                for row in range(len(self.slots)):
                    yield from self._add(row, drawn_BN[row].tolist())

    def _fill(self, row: int, index: int) -> list[int]:
        """Give the row a prompt; returns the token that follows it, NONE where that is a stop id."""
        prompt = self.prompts[index]
        lengths = [common_prefix(known, prompt) for known in self.known]
        source = int(np.argmax(lengths))
        at = min(lengths[source], len(prompt) - 1)
        for piece in [prompt[i : i + PIECE] for i in range(at, len(prompt), PIECE)]:
            tokens_1T = np.zeros((1, min(bucket(len(piece)), PIECE)), np.int32)
            tokens_1T[0, : len(piece)] = piece
            places = (source, row, tokens_1T, at, len(piece))
            self.rows, hidden_1E = run_piece(self.decoder, self.arrays, self.rows, *places)
            source, at = row, at + len(piece)
        seen_V = None
        if self.rows.seen_BV is not None:
            seen_V = np.zeros(self.rows.seen_BV.shape[1], bool)
            seen_V[list(prompt)] = True
        key = jax.random.fold_in(self.key, index)
        self.rows, drawn = draw_first(
            self.decoder, self.arrays, self.rows, row, hidden_1E, key, seen_V, self.stops, len(prompt), self.sampling
        )
        self.known[row] = prompt
        text = Continuation(self.tokenizer, prompt, self.stop) if self.tokenizer and self.stop else None
        self.slots[row] = _Slot(index, [], text)
        return [int(drawn)]

    def _add(self, row: int, drawn: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Add drawn tokens to the row's; what it has come to where that is its end."""
        slot = self.slots[row]
        if slot is None:
            return
        for token in drawn:
            ended = token == NONE
            if not ended:
                slot.ids.append(token)
                if slot.text is not None:
                    slot.text.add(token)
                ended = len(slot.ids) == self.max_new_tokens or (slot.text is not None and slot.text.stopped)
            if ended:
                self.slots[row] = None
                yield slot.index, slot.ids
                return


def keys_stay(config: ModelConfig, length: int) -> bool:
    """Whether no key of a text of this length depends on where it ends, and distances say all about its attention."""
    return not changes_with_length(config, length) and not (config.position == "alibi" and config.alibi_scaled)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _order(prompts: Sequence[Sequence[int]], indices: Sequence[int]) -> list[int]:
    """Prompts that begin alike one after the other, where that saves more than a tenth; else the longest first."""
    order = sorted(indices, key=lambda i: tuple(prompts[i]))
    saved = sum(common_prefix(prompts[a], prompts[b]) for a, b in itertools.pairwise(order))
    if saved > 0.1 * sum(len(prompts[i]) for i in order):
        return order
    return sorted(indices, key=lambda i: -len(prompts[i]))


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
