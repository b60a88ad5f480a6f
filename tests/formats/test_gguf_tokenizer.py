"""Tokenizers through GGUF's keys and back: the same ids and texts as the originals, on llama.cpp's own vectors."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.formats.gguf.pretokenizers import PRE_TOKENIZERS, name_of
from slmjax.formats.gguf.tokenizer import tokenizer_from, tokenizer_to
from slmjax.formats.gguf.tokenizer_json import KEY
from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer, train_bpe

ORIGINALS = ("gpt2", "llama2", "neox20b", "smollm2")


def original(assets: Path, name: str) -> Tokenizer:
    # The file itself: of the directory transformers leaves out that digits are split.
    file = "models/smollm2-135m-instruct/tokenizer.json"
    folder = assets / (file if name == "smollm2" else f"data/tokenizers/{name}")
    return load_tokenizer(folder)


def vectors(assets: Path, name: str) -> tuple[list[str], list[list[int]]]:
    folder = assets / "data/tokenizers"
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    return texts, [[int(id) for id in line.split()] for line in lines[: len(texts)]]


def through(tokenizer: Tokenizer, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of the keys that llama.cpp reads."""
    keys = tokenizer_to(tokenizer, vocab_size or tokenizer.vocab_size)
    return tokenizer_from({key: value for key, value in keys.items() if key != KEY}, "here")


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_tokenizer_equals_its_original_on_every_vector(assets, name):
    ours = original(assets, name)
    theirs = through(ours)
    texts, _ = vectors(assets, "gpt-2")
    assert len(texts) == 47
    for text in texts:
        ids = ours.encode(text)
        assert theirs.encode(text) == ids, text
        assert theirs.decode(ids) == ours.decode(ids), text
    assert theirs.vocab_size == ours.vocab_size
    assert (theirs.bos_id, theirs.eos_id, theirs.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    np.testing.assert_array_equal(theirs.token_bytes(), ours.token_bytes())


@pytest.mark.parametrize(("name", "vector"), [("gpt2", "gpt-2"), ("llama2", "llama-spm")])
def test_ids_are_those_of_llama_cpp(assets, name, vector):
    tokenizer = through(original(assets, name))
    for text, ids in zip(*vectors(assets, vector), strict=True):
        assert tokenizer.encode(text) == ids, text


def test_special_tokens_chat_template_and_padding_survive(assets):
    ours = original(assets, "smollm2")
    theirs = through(ours, ours.vocab_size + 3)
    assert theirs.settings["chat_template"] == ours.settings["chat_template"]
    assert theirs.vocab_size == ours.vocab_size  # the three rows that pad the embedding are no tokens
    text = "<|im_start|>user\nHi<|im_end|>"
    assert theirs.encode(text, allow_special=True) == ours.encode(text, allow_special=True)
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode([1, 2]) == "" and theirs.decode([1, 2], keep_special=True) == "<|im_start|><|im_end|>"


def test_the_embedded_tokenizer_of_a_real_file_equals_its_original(assets):
    from slmjax.formats.gguf.file import open_gguf

    path = assets / "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs, ours = tokenizer_from(open_gguf(path).metadata, "here"), original(assets, "smollm2")
    for text in vectors(assets, "gpt-2")[0]:
        assert theirs.encode(text) == ours.encode(text)
    assert theirs.settings["chat_template"] == ours.settings["chat_template"]
    assert (theirs.bos_id, theirs.eos_id, theirs.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_a_tokenizer_of_ours_survives_on_any_text(text):
    ours, theirs = _TRAINED
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text


_OURS = train_bpe(["the cat sat on the mat 123 times, didn't it?\n\n" * 5], 300, progress=False)
_TRAINED = (_OURS, through(_OURS))


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=40))
def test_sentencepiece_written_as_json_becomes_sentencepiece_again(text):
    """A miniature of what transformers makes of Llama-2's tokenizer.model."""
    ours, theirs = _JSON_LLAMA
    if not set(text) & {"\u2581", "\x00"}:  # SentencePiece reads its own sign for a space as one
        assert theirs.encode(text) == ours.encode(text)


def _json_llama() -> tuple[Tokenizer, Tokenizer]:
    import tokenizers as hf

    from slmjax.tokenization.backends import HuggingFaceBackend

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("a", "n"), ("\u2581", "\u2581"), ("an", "d")]
    letters = sorted({c for pair in merges for part in pair for c in part} | set("abcdefgh"))
    pieces += letters + [a + b for a, b in merges]
    model = hf.models.BPE(
        {p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = hf.Tokenizer(model)
    tokenizer.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.Prepend("\u2581"), hf.normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ours = Tokenizer(HuggingFaceBackend(tokenizer), {"bos_token": "<s>", "eos_token": "</s>"})
    return ours, through(ours)


_JSON_LLAMA = _json_llama()


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_loses_no_text(name):
    pieces = PRE_TOKENIZERS[name].build().pre_tokenize_str("Don't  panic!\r\n 1234 日本語 ½…")
    ends = [span for _, span in pieces]
    assert ends[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(ends))


def test_the_name_of_every_pre_tokenizer_is_found_by_what_it_does():
    for name, pre in PRE_TOKENIZERS.items():
        found = name_of(pre.build(), nfc=pre.nfc, ignore_merges=pre.ignore_merges)
        assert found is not None and PRE_TOKENIZERS[found].splits == pre.splits, (name, found)


# What the tokenizers themselves say in their tokenizer.json; source: the published files of these models.
_WORD = r"[^\r\n\p{L}\p{N}]?"
_O200K_UPPER, _O200K_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
ORIGINAL_EXPRESSIONS = {
    "gpt-4o": (
        rf"{_WORD}{_O200K_UPPER}*{_O200K_LOWER}+{_SHORT}|{_WORD}{_O200K_UPPER}+{_O200K_LOWER}*{_SHORT}"
        rf"|\p{{N}}{{1,3}}{_TAIL}"
    ),
    "tekken": rf"{_WORD}{_O200K_UPPER}*{_O200K_LOWER}+|{_WORD}{_O200K_UPPER}+{_O200K_LOWER}*|\p{{N}}{_TAIL}",
    "qwen2": rf"{_SHORT[:-1]}|{_WORD}\p{{L}}+|\p{{N}}{_TAIL.replace('/', '')}",
}


@pytest.mark.parametrize("name", ORIGINAL_EXPRESSIONS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("aB'sS \n/1中éÉǅ.\u0301'll D"), max_size=30))
def test_a_pre_tokenizer_cuts_as_the_tokenizer_it_is_named_for(name, text):
    from tokenizers import Regex, pre_tokenizers

    theirs = pre_tokenizers.Split(Regex(ORIGINAL_EXPRESSIONS[name]), "isolated")
    ours = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(s), "isolated") for s in PRE_TOKENIZERS[name].splits])
    assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("deepseek-llm", "Ab\u4e2d\u6587 12\nc", ["Ab", "\u4e2d\u6587", " ", "12", "\n", "c"]),
        ("deepseek-v3", "x 1234 \u4e2d\u6587ab.net", ["x", " ", "123", "4", " ", "\u4e2d\u6587", "ab", ".net"]),
        ("kimi-k2", "a\u4e2d\u6587b 12345", ["a", "\u4e2d\u6587", "b", " ", "123", "45"]),
        ("afmoe", "12345 1234567", ["12", "345", " ", "1", "234", "567"]),
        ("tekken", "fooBar 12", ["foo", "Bar", " ", "1", "2"]),
        ("gpt-4o", "fooBar's 1234", ["foo", "Bar's", " ", "123", "4"]),
        ("exaone", "a 12", ["a", " ", "1", "2"]),
        ("hunyuan", "it's 12", ["it", "'s", " ", "1", "2"]),
        ("seed-coder", "a?\nb", ["a", "?", "\n", "b"]),
        ("bailingmoe", "a\n\nb", ["a", "\n\n", "b"]),
    ],
)
def test_pre_tokenizers_cut_texts_as_llama_cpp_does(name, text, pieces):
    found = PRE_TOKENIZERS[name].build().pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in found] == pieces


def test_sentencepiece_files_survive_their_parser(assets):
    data = (assets / "data/tokenizers/llama2/tokenizer.model").read_bytes()
    model = sp.parse_sentencepiece(data)
    assert sp.parse_sentencepiece(model.to_bytes()) == model
    assert (len(model.pieces), model.algorithm, model.add_dummy_prefix) == (32000, sp.BPE, True)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_a_damaged_sentencepiece_file_is_refused_in_a_sentence(data):
    try:
        sp.parse_sentencepiece(data)
    except UserError as error:
        assert "damaged" in str(error)


BASE = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.tokens": []}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": 7}, "no tokenizer"),
        ({"tokenizer.ggml.merges": ["a c"]}, "not tokens"),
        ({"tokenizer.ggml.merges": ["ab"]}, "not tokens"),
        ({"tokenizer.ggml.merges": ["b a"]}, "give none"),
        ({"tokenizer.ggml.tokens": ["a", "", "\u2581"], "tokenizer.ggml.merges": ["", "\u2581 a"]}, "not tokens"),
        ({"tokenizer.ggml.merges": None}, "merges"),
        ({"tokenizer.ggml.model": "rwkv"}, "gpt2, llama and t5"),
        ({"tokenizer.ggml.pre": "gpt-9"}, "gpt-2"),
        ({"tokenizer.ggml.token_type": np.array([1, 1], np.int32)}, "each of the 3 tokens"),
        ({"tokenizer.ggml.eos_token_id": -1}, "eos_token_id"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": np.array([0, np.nan, 0], np.float32)}, "finite"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "a", "b"]}, "cannot be used"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "", "b"]}, "cannot be used"),
    ],
)
def test_a_tokenizer_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        tokenizer_from(BASE | change, "here")


def test_what_gguf_has_no_name_for_is_refused(tmp_path):
    import tokenizers as hf

    tokenizer = hf.Tokenizer(hf.models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no name"):
        tokenizer_to(load_tokenizer(tmp_path), 10)
    assert json.loads((tmp_path / "tokenizer.json").read_text())  # untouched
    with pytest.raises(UserError, match="more than the model"):
        tokenizer_to(_OURS, 10)
