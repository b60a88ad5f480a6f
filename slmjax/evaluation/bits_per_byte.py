"""Bits per byte of held-out text, by a model and by the baselines that make the number mean something."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence

import jax
import numpy as np

from slmjax.inference.language_model import LanguageModel
from slmjax.models.transformer import head_weights
from slmjax.objectives.cross_entropy import linear_cross_entropy
from slmjax.tokenization.tokenizer import Tokenizer


def evaluate_text(lm: LanguageModel, texts: Sequence[str], *, sequence_length: int = 0) -> dict[str, float]:
    """nll_per_token (nats), bits_per_byte, tokens, bytes of texts, each read from its start in windows of the context.

    A window starts where the one before it ended, so tokens at its start have less context: a slight over-estimate.
    Each text begins after the tokenizer's end-of-text token (or beginning), which is how training saw documents.
    """
    T = sequence_length or min(lm.config.context_length, 1024)
    start = lm.tokenizer.bos_id if lm.tokenizer.bos_id is not None else lm.tokenizer.eos_id
    windows = []
    for ids in lm.tokenizer.encode_batch(list(texts)):
        ids = ([] if start is None else [start]) + list(ids)
        windows += [ids[i : i + T + 1] for i in range(0, len(ids) - 1, T)]

    @jax.jit
    def nll(params, inputs, targets, weights):
        hidden = lm.model.apply({"params": params}, inputs, hidden=True)
        kernel, bias = head_weights(lm.config, params)
        return linear_cross_entropy(lm.config, 0.0, None, 2**26, hidden, kernel, bias, targets, weights).nll

    from tqdm import tqdm

    total, count, B = 0.0, 0, 8
    for i in tqdm(range(0, len(windows), B), unit="batch", desc="evaluate"):
        inputs, targets = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
        weights = np.zeros((B, T), np.float32)
        for row, window in enumerate(windows[i : i + B]):
            n = len(window) - 1
            inputs[row, :n], targets[row, :n], weights[row, :n] = window[:-1], window[1:], 1.0
        total += float(nll(lm.params, inputs, targets, weights))
        count += int(weights.sum())
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "nll_per_token": total / max(count, 1),
        "bits_per_byte": total / math.log(2) / max(num_bytes, 1),
        "tokens": count,
        "bytes": num_bytes,
    }


def gzip_bits_per_byte(text: bytes, level: int = 9) -> float:
    """8 x compressed size / size: what `gzip -9` needs."""
    return 8 * len(gzip.compress(text, level)) / max(len(text), 1)


def unigram_bits_per_byte(tokenizer: Tokenizer, train: bytes, heldout: bytes) -> float:
    """Token frequencies of the training text with one added to each, over the same tokenizer."""
    counts = np.ones(tokenizer.vocab_size)
    np.add.at(counts, tokenizer.encode(train.decode(errors="replace")), 1)
    bits = -np.log2(counts / counts.sum())
    return float(bits[tokenizer.encode(heldout.decode(errors="replace"))].sum() / max(len(heldout), 1))


def ngram_bits_per_byte(train: bytes, heldout: bytes, order: int = 5, limit: int = 2_000_000) -> float:
    """A byte n-gram model with Witten-Bell interpolation (Witten and Bell 1991), trained on at most `limit` bytes.

    p_n(b | c) = (count(c b) + types(c) p_{n-1}(b | c')) / (count(c) + types(c)), down to the uniform 1/256.
    """
    data = np.frombuffer(train[:limit], np.uint8).astype(np.int64)
    test = np.frombuffer(heldout[: limit // 4], np.uint8).astype(np.int64)
    probabilities = np.full(len(test), 1 / 256)
    for n in range(order):  # n bytes of context; an n-gram is a number in base 256
        grams, counts = np.unique(_windows(data, n + 1), return_counts=True)
        contexts, first = np.unique(grams >> 8, return_index=True)
        totals, types = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        wanted = _windows(test, n + 1)
        gram_count = _find(grams, counts, wanted)
        context_count, context_types = _find(contexts, totals, wanted >> 8), _find(contexts, types, wanted >> 8)
        lower = probabilities[n:]
        seen = context_count > 0
        mixed = (gram_count + context_types * lower) / np.maximum(context_count + context_types, 1)
        probabilities[n:] = np.where(seen, mixed, lower)
    return float(-np.log2(probabilities).mean())


def _windows(data: np.ndarray, n: int) -> np.ndarray:
    codes = np.zeros(len(data) - n + 1, np.int64)
    for i in range(n):
        codes = codes << 8 | data[i : len(data) - n + 1 + i]
    return codes


def _find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
