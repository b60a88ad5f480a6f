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
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from slmjax.inference import ragged_rows
from slmjax.inference.decoding import NONE, Decoder
from slmjax.inference.generate import BUCKET, bucket, check_prompts, decode_prompts, padded_stops
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.longrope import changes_with_length
from slmjax.inference.sampling import GREEDY, Sampling, require_seed
from slmjax.inference.text import Continuation
from slmjax.models.config import ModelConfig
from slmjax.tokenization.tokenizer import Tokenizer

ROWS = 16  # of a batch: on a CPU a step of 16 takes little longer than one of 4, since it reads the same weights
PIECE = 256  # tokens of a prompt that are run at once


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
        # A prompt's last piece is padded to less than a bucket more; what that writes lies ahead of every query.
        capacity = bucket(max(map(len, prompts)) + max(BUCKET, max_new_tokens))
        penalized = sampling.repetition_penalty != 1
        self.rows = ragged_rows.empty_rows(decoder, arrays, rows, capacity, penalized)
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
                self.rows = ragged_rows.end_rows(self.rows, ended_B)
                limits = (self.stops, self.max_new_tokens, self.sampling)
                self.rows = ragged_rows.decode_burst(self.decoder, self.arrays, self.rows, *limits)
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
            self.rows, hidden_1E = ragged_rows.run_piece(self.decoder, self.arrays, self.rows, *places)
            source, at = row, at + len(piece)
        seen_V = None
        if self.rows.seen_BV is not None:
            seen_V = np.zeros(self.rows.seen_BV.shape[1], bool)
            seen_V[list(prompt)] = True
        key = jax.random.fold_in(self.key, index)
        self.rows, drawn = ragged_rows.draw_first(
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
    """Number of tokens with which two sequences begin alike."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _order(prompts: Sequence[Sequence[int]], indices: Sequence[int]) -> list[int]:
    """Prompts that begin alike one after the other, where that saves more than a tenth; else the longest first."""
    order = sorted(indices, key=lambda i: tuple(prompts[i]))
    saved = sum(common_prefix(prompts[a], prompts[b]) for a, b in itertools.pairwise(order))
    if saved > 0.1 * sum(len(prompts[i]) for i in order):
        return order
    return sorted(indices, key=lambda i: -len(prompts[i]))
