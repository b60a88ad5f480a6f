"""Prompts with needles in them: the template, the needle sentence and the depths of RULER (arXiv:2404.06654).

As its `niah_single_2`, `niah_multikey_1`, `niah_multivalue` and `niah_multiquery` ask, but for the haystack, the words
of the keys, and the numbers drawn: each item has a generator of its own, so that it is the same in every run.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

import numpy as np

from slmjax.errors import UserError

TEMPLATE = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the numbers afterwards.\n{context}\nWhat are all the special magic numbers for {query} mentioned in the provided "
    "text?"
)
TEMPLATE_OF_ONE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n{context}\nWhat is the special magic number for {query} mentioned in the provided text?"
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
PREFIX = "The special magic numbers for {query} mentioned in the provided text are"
PREFIX_OF_ONE = "The special magic number for {query} mentioned in the provided text is"

MAX_NEW_TOKENS = 128  # which a prompt leaves free
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int).tolist()  # percent of the text before a needle
SAMPLES = len(DEPTHS)  # of each length: every depth once

_ADJECTIVES = (
    "amber ancient brave bright calm clever cold crimson curious distant eager early fierce gentle golden grand green "
    "hidden hollow humble icy jolly keen kind late lively lonely lucky mellow narrow noble odd pale patient plain "
    "proud quick quiet rapid rare rough rustic sharp shy silver slow smooth solid stern sudden swift tall tender tidy "
    "vivid warm wild wise young zealous"
)
_NOUNS = (
    "anchor apple arrow badger basket beacon bridge candle canyon castle cedar comet copper desert dragon eagle falcon "
    "feather forest fountain garden glacier hammer harbor island jacket jungle kettle kitten ladder lantern lemon "
    "marble meadow mirror mountain needle ocean orchard otter pepper pillow planet rabbit ribbon river saddle shadow "
    "shelter spider summit temple thunder tiger tunnel valley violin walnut whistle window zebra"
)
KEYS = [f"{adjective}-{noun}" for adjective, noun in product(_ADJECTIVES.split(), _NOUNS.split())]
_LONGEST_SENTENCE = 30  # words: code has few full stops


@dataclass(frozen=True)
class Kind:
    """A task's needles: how many keys, numbers of each key, and keys that are asked for."""

    keys: int
    values: int
    queries: int


KINDS = {
    "needle_single": Kind(1, 1, 1),
    "needle_multikey": Kind(4, 1, 1),
    "needle_multivalue": Kind(1, 4, 1),
    "needle_multiquery": Kind(4, 1, 4),
}


class Haystack:
    """A text as sentences, counted in tokens.

    count: the number of tokens of a text.
    """

    def __init__(self, text: str, count: Callable[[str], int]):
        self.sentences = split_sentences(text)
        self.count = count
        # A prompt is counted again when it is whole: these numbers, of each sentence alone, are where to begin.
        self._sums = list(accumulate((max(count(f" {sentence}"), 1) for sentence in self.sentences), initial=0))

    def sentences_in(self, tokens: int) -> int:
        """The number of sentences from the beginning that so many tokens hold."""
        return int(np.searchsorted(self._sums, tokens, side="right")) - 1

    def tokens_of(self, sentences: int) -> int:
        """The number of tokens of the first so many sentences."""
        return self._sums[sentences]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, its white space made single spaces, and long ones cut."""
    sentences: list[str] = []
    words: list[str] = []
    for word in text.split():
        words.append(word)
        if len(words) == _LONGEST_SENTENCE or re.search(r"[.!?][\"')\]]*$", word):
            sentences.append(" ".join(words))
            words = []
    return sentences + ([" ".join(words)] if words else [])


def depth_order() -> list[int]:
    """The depths in an order of which every beginning covers the whole text evenly."""
    golden = (np.arange(len(DEPTHS)) * (math.sqrt(5) - 1) / 2) % 1
    return [DEPTHS[i] for i in np.argsort(np.argsort(golden))]


def make_items(
    name: str, haystack: Haystack, lengths: Sequence[int], *, samples: int = SAMPLES, margin: int = 0
) -> list[dict[str, Any]]:
    """The items of a task of `KINDS`, sample after sample at every length.

    An item has `input` and `gen_prefix` (the prompt), `outputs` (the numbers to find), `depths` (where each of them
    is, in percent), `max_length` (which prompt and answer have together at most) and `length` (which they have).

    margin: tokens that a chat template puts around a prompt.

    Raises:
        UserError: a length that leaves no room for text, or is longer than the haystack.
    """
    order = depth_order()
    return [
        make_item(KINDS[name], haystack, length, order[sample % len(order)], f"{name} {length} {sample}", margin)
        for sample in range(samples)
        for length in lengths
    ]


def make_item(kind: Kind, haystack: Haystack, length: int, depth: int, seed: str, margin: int) -> dict[str, Any]:
    """One item, the first needle that is asked for at this depth, the others anywhere else."""
    rng = random.Random(seed)
    keys = rng.sample(KEYS, kind.keys)
    numbers = [str(number) for number in rng.sample(range(10**6, 10**7), kind.keys * kind.values)]
    asked = keys[: kind.queries]
    depths = [depth, *rng.sample([other for other in DEPTHS if other != depth], len(numbers) - 1)]
    owners = [key for key in keys for _ in range(kind.values)]
    needles = [NEEDLE.format(key=key, value=number) for key, number in zip(owners, numbers, strict=True)]
    rng.shuffle(asked)  # the question's order says nothing of the text's
    query = ", ".join(asked[:-1]) + (", and " if asked[1:] else "") + asked[-1]
    one = kind.queries * kind.values == 1
    prefix = (PREFIX_OF_ONE if one else PREFIX).format(query=query)
    count_asked = kind.queries * kind.values

    def prompt(sentences: int) -> str:
        context = place_needles(haystack.sentences[:sentences], depths, needles)
        return (TEMPLATE_OF_ONE if one else TEMPLATE).format(context=context, query=query)

    def tokens(sentences: int) -> int:
        return haystack.count(f"{prompt(sentences)} {prefix}") + margin + MAX_NEW_TOKENS

    bare = tokens(0)
    sentences = haystack.sentences_in(length - bare) if length > bare else 0
    if sentences < 1:
        raise UserError(
            f"A needle cannot be hidden in {length:,} tokens, of which the question, the needles and the answer need "
            f"{bare:,}: give longer --lengths, or a model with a longer context."
        )
    if sentences == len(haystack.sentences):
        raise UserError(
            f"The haystack has {haystack.tokens_of(sentences):,} tokens, too few for prompts of {length:,}: put a "
            "longer text into --data-dir, or give shorter --lengths."
        )
    total = tokens(sentences)
    while total > length and sentences:
        sentences = max(min(sentences - 1, haystack.sentences_in(haystack.tokens_of(sentences) + length - total)), 0)
        total = tokens(sentences)
    return {
        "input": prompt(sentences),
        "gen_prefix": prefix,
        "outputs": numbers[:count_asked],
        "depths": depths[:count_asked],
        "query": query,
        "max_length": length,
        "length": total,
    }


def place_needles(sentences: Sequence[str], depths: Sequence[int], needles: Sequence[str]) -> str:
    """The sentences with each needle after its percentage of them."""
    parts: list[str] = []
    last = 0
    for depth, needle in sorted(zip(depths, needles, strict=True)):
        place = len(sentences) * depth // 100
        parts += [*sentences[last:place], needle]
        last = place
    return " ".join([*parts, *sentences[last:]])


def found_strings(answer: str, outputs: Iterable[str]) -> list[bool]:
    """Whether an answer contains each of the strings, whatever their case."""
    answer = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).strip().lower()
    return [output.lower() in answer for output in outputs]


def default_lengths(context: int) -> list[int]:
    """Powers of two from 512 on, and the context itself."""
    return [2**n for n in range(9, 31) if 2**n < context] + [context]
