"""A tokenizer comes back from a GGUF file as it went in, or is refused in a sentence."""

import random
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.formats.gguf.tokenizer import tokenizer_from, tokenizer_to
from slmjax.formats.gguf.tokenizer_json import KEY
from slmjax.formats.huggingface.tokenizer import read
from tests.tokenizer_directories import text, write_directory


def outcome(seed: int) -> str:
    """What becomes of one random directory: "equal" or "refused"; fails where ids differ."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        write_directory(rng, Path(name))
        try:
            tokenizer = read(Path(name))
            tokenizer.encode("\0 a unknown \U0001f999")
            with warnings.catch_warnings(action="ignore"):  # what llama.cpp does otherwise
                keys = tokenizer_to(tokenizer, tokenizer.vocab_size)
        except UserError:
            return "refused"
    back = tokenizer_from(keys, "here")
    assert (back.bos_id, back.eos_id, back.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    if tokenizer.settings.get("split_special_tokens"):
        return "refused"  # a setting that GGUF has no key for
    for sample in (text(rng) for _ in range(6)):
        for special in (False, True):
            ids = tokenizer.encode(sample, special)
            assert back.encode(sample, special) == ids, (seed, sample)
            assert back.decode(ids) == tokenizer.decode(ids), (seed, sample)
    return "equal"


def test_random_tokenizers_come_back_from_gguf():
    assert [outcome(seed) for seed in range(30)].count("equal") >= 15


@pytest.mark.slow
def test_more_random_tokenizers_come_back_from_gguf():
    assert [outcome(seed) for seed in range(5000, 5100)].count("equal") >= 50


def test_runs_of_spaces_that_are_tokens_are_found_in_files_of_llama_cpp():
    """Gemma's files have them as tokens of the user, with the spaces themselves."""
    pieces = ["<unk>", "a", "b", "\u2581", "  ", "    ", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 1, 1, 1, 4, 4, *[6] * 256]
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.add_space_prefix": False}
    keys["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    keys["tokenizer.ggml.scores"] = np.zeros(len(pieces), np.float32)
    tokenizer = tokenizer_from(keys, "here")
    assert tokenizer.encode("a    b  a b") == [1, 5, 2, 4, 1, 3, 2]
    assert tokenizer.decode([1, 5, 2, 4, 1, 3, 2]) == "a    b  a b"
    assert tokenizer_to(tokenizer, len(pieces))["tokenizer.ggml.tokens"] == pieces


def test_a_tokenizer_json_of_other_tokens_is_not_taken():
    keys = {"tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.model": "gpt2"}
    other = '{"version": "1.0", "model": {"type": "BPE", "vocab": {"x": 0}, "merges": []}}'
    assert tokenizer_from(keys | {KEY: other}, "here").encode("ab") == [2]
    with pytest.raises(UserError, match="cannot be used"):
        tokenizer_from(keys | {KEY: "{"}, "here")
