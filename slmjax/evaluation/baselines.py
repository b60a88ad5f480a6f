"""Bits per byte of simpler models on the same text: gzip, token frequencies, byte n-grams."""

from __future__ import annotations

import gzip

import numpy as np

from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import Tokenizer

MAX_ORDER = 7  # bytes in an n-gram: it is one int64


def gzip_bits_per_byte(text: bytes, level: int = 9) -> float:
    """8 x compressed size / size: what `gzip -9` needs."""
    return 8 * len(gzip.compress(text, level)) / max(len(text), 1)


def unigram_bits_per_byte(tokenizer: Tokenizer, train: bytes, heldout: bytes) -> float:
    """Token frequencies of the training text with one added to each, over the same tokenizer."""
    counts = np.bincount(tokenizer.encode(train.decode(errors="replace")), minlength=tokenizer.vocab_size) + 1.0
    bits = -np.log2(counts / counts.sum())
    return float(bits[tokenizer.encode(heldout.decode(errors="replace"))].sum() / max(len(heldout), 1))


def ngram_bits_per_byte(train: bytes, heldout: bytes, order: int = 5, limit: int = 2_000_000) -> float:
    """A byte n-gram model with Witten-Bell interpolation (Witten and Bell 1991), trained on at most `limit` bytes.

    p_n(b | c) = (count(c b) + types(c) p_{n-1}(b | c')) / (count(c) + types(c)), down to the uniform 1/256, where
    types(c) is how many different bytes were seen after the context c. At most a quarter of `limit` is measured.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UserError(f"The n-gram order {order} must lie between 1 and {MAX_ORDER}.")
    data = np.frombuffer(train[:limit], np.uint8).astype(np.int64)
    test = np.frombuffer(heldout[: max(limit // 4, 1)], np.uint8).astype(np.int64)
    if not len(test):
        return 0.0
    probabilities = np.full(len(test), 1 / 256)
    for n in range(min(order, len(data), len(test))):  # n bytes of context; an n-gram is a number in base 256
        grams, counts = np.unique(_windows(data, n + 1), return_counts=True)
        contexts, first = np.unique(grams >> 8, return_index=True)
        totals, types = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        wanted = _windows(test, n + 1)
        gram_count = _find(grams, counts, wanted)
        context_count, context_types = _find(contexts, totals, wanted >> 8), _find(contexts, types, wanted >> 8)
        lower = probabilities[n:]  # the first n bytes have less context and keep their shorter one
        mixed = (gram_count + context_types * lower) / np.maximum(context_count + context_types, 1)
        probabilities[n:] = np.where(context_count > 0, mixed, lower)
    return float(-np.log2(probabilities).mean())


def _windows(data: np.ndarray, n: int) -> np.ndarray:
    """Each n neighbouring bytes as one number, int64 [len(data) - n + 1]."""
    codes = np.zeros(len(data) - n + 1, np.int64)
    for i in range(n):
        codes = codes << 8 | data[i : len(data) - n + 1 + i]
    return codes


def _find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] is wanted, 0 where no key is; keys ascend."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
