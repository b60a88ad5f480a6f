"""Bits per byte: each token counted once, however the texts are cut and packed; baselines against their definition."""

import gzip
import importlib.util
import math
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evaluation.baselines import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
from slmjax.evaluation.bits_per_byte import evaluate_text
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.tokenization.tokenizer import train_bpe

TEXTS = ["the old river", "walks under the light", "of a stone " * 20, "x", ""]


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_bpe(TEXTS, 270, progress=False)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=16, init_std=0.3,
        context_length=256,
    )  # fmt: skip
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    return LanguageModel(config=config, params=params, tokenizer=tokenizer)


def by_hand(lm, text, with_bos):
    """Nats of one text by the whole forward pass, and its tokens."""
    ids = lm.tokenizer.encode(text)
    row = [lm.tokenizer.bos_id, *ids] if with_bos else ids
    log_probs = jax.nn.log_softmax(lm.apply(lm.params, np.asarray([row])))[0]
    nats = -sum(float(log_probs[i, token]) for i, token in enumerate(row[1:]))
    return nats + (0.0 if with_bos else math.log(lm.config.vocab_size)), len(ids)


@pytest.mark.parametrize("with_bos", [False, True])
def test_packed_texts_score_as_each_alone(lm, monkeypatch, with_bos):
    monkeypatch.setitem(lm.tokenizer.settings, "add_bos_token", with_bos)
    result = evaluate_text(lm, TEXTS, progress=False)
    scored = [by_hand(lm, text, with_bos) for text in TEXTS if text]
    nats, tokens = sum(n for n, _ in scored), sum(t for _, t in scored)
    assert result["tokens"] == tokens and result["bytes"] == sum(map(len, TEXTS))
    assert result["nll_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / result["bytes"], rel=1e-5)


def test_windows_count_every_token_once(lm):
    counts = {evaluate_text(lm, TEXTS, sequence_length=T, progress=False)["tokens"] for T in (1, 7, 16, 0)}
    assert counts == {sum(len(lm.tokenizer.encode(text)) for text in TEXTS)}


def test_a_model_that_knows_nothing_needs_log2_v_bits_a_token(lm):
    flat = LanguageModel(config=lm.config, params=jax.tree.map(np.zeros_like, lm.params), tokenizer=lm.tokenizer)
    assert evaluate_text(flat, TEXTS, progress=False)["nll_per_token"] == pytest.approx(math.log(lm.config.vocab_size))


def test_nothing_to_evaluate_and_too_long_a_window_are_refused(lm):
    for texts, T, said in (([], 0, "no text"), ([""], 0, "no text"), (["a"], 257, "context"), (["a"], -1, "context")):
        with pytest.raises(UserError, match=said):
            evaluate_text(lm, texts, sequence_length=T, progress=False)


def test_gzip_is_gzip():
    text = b"the old river " * 50
    assert gzip_bits_per_byte(text) == 8 * len(gzip.compress(text, 9)) / len(text)


def test_unigram_of_uniform_tokens_is_log2_of_their_number():
    tokenizer = train_bpe(["ab"], 257, progress=False)  # bytes, and <|endoftext|> that never occurs
    every = "".join(chr(c) for c in range(32, 127))
    bits = unigram_bits_per_byte(tokenizer, (every * 2000).encode(), every.encode())
    assert bits == pytest.approx(math.log2(95), abs=2e-3)


def test_ngram_probabilities_sum_to_one():
    train = b"abracadabra abracadabra"
    for context in (b"abr", b"zzz", b"a"):
        bits = [ngram_bits_per_byte(train, context + bytes([b]), order=3) * (len(context) + 1) for b in range(256)]
        alone = ngram_bits_per_byte(train, context, order=3) * len(context)
        assert sum(2.0 ** -(b - alone) for b in bits) == pytest.approx(1.0)


@pytest.mark.parametrize(("train", "heldout"), [(b"", b"abc"), (b"a", b"abc"), (b"abc", b"a"), (b"abc", b"")])
def test_ngram_of_almost_nothing(train, heldout):
    assert 0 <= ngram_bits_per_byte(train, heldout) < 16


def test_higher_orders_are_better_on_real_text_and_quick():
    source = Path(importlib.util.find_spec("argparse").origin).read_bytes()
    cut = len(source) * 9 // 10
    bits = [ngram_bits_per_byte(source[:cut], source[cut:], order=n) for n in (1, 3, 5)]
    assert 8 > bits[0] > bits[1] > bits[2]
    start = time.process_time()
    ngram_bits_per_byte(source * 10, source)
    assert time.process_time() - start < 5


def test_ngram_beats_unigram_on_english(assets):
    text = (assets / "data" / "text" / "tinyshakespeare.txt").read_bytes()
    train, heldout = text[:400_000], text[400_000:450_000]
    tokenizer = train_bpe([train.decode()], 512, progress=False)
    assert ngram_bits_per_byte(train, heldout) < unigram_bits_per_byte(tokenizer, train, heldout) < 8
