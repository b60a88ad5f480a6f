"""A tokenizer loses nothing, counts bytes exactly, survives its own file, and agrees with the reference vectors."""

import json
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, train_bpe

TEXTS = [
    f"The {word} sat on the mat in 19{i:02d}, and said: “naïve café”.\n\n" for i, word in enumerate(["cat", "dog"] * 9)
]

any_text = st.text(st.characters(exclude_categories=["Cs"]))  # all of Unicode but lone surrogates


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe(TEXTS, 300, progress=False)


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
    import sentencepiece

    directory = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    return directory / "tokenizer.model"


@given(any_text)
@settings(deadline=None)
def test_any_text_survives_encode_and_decode(trained, text):
    assert trained.decode(trained.encode(text)) == text


@given(any_text)
@settings(deadline=None)
def test_token_bytes_sum_to_the_bytes_of_the_text(trained, text):
    assert trained.token_bytes()[trained.encode(text)].sum() == len(text.encode())


@given(any_text)
@settings(deadline=None)
def test_sentencepiece_without_dummy_prefix_counts_bytes_exactly(sentencepiece_path, text):
    text = text.replace("▁", "")  # SentencePiece itself cannot tell it from a space
    tokenizer = load_tokenizer(sentencepiece_path)
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


@given(st.lists(any_text, max_size=5), st.booleans())
@settings(deadline=None)
def test_a_batch_is_its_texts_one_by_one(trained, sentencepiece_path, texts, special):
    """With special tokens' strings among them, which are these tokens or text."""
    for tokenizer, token in ((trained, END_OF_TEXT), (load_tokenizer(sentencepiece_path), "</s>")):
        texts = [*texts, f"{token}a{token}{token}", *(f"{text}{token}" for text in texts[:2])]
        assert tokenizer.encode_batch(texts, special) == [tokenizer.encode(text, special) for text in texts]


def test_training_is_deterministic_and_reaches_the_size(trained):
    again = train_bpe(TEXTS, 300, progress=False)
    assert again.vocab_size == 300
    assert again.fingerprint == trained.fingerprint
    assert train_bpe(TEXTS, 299, progress=False).fingerprint != trained.fingerprint


def test_common_words_become_few_tokens(trained):
    assert len(trained.encode(" and said")) < len(" and said") / 2


def test_numbers_are_split_into_at_most_three_digits():
    tokenizer = train_bpe(["123456 " * 50], 261, progress=False)
    assert max(len(tokenizer.decode([id])) for id in tokenizer.encode("123456")) <= 3


def test_a_small_corpus_gives_a_smaller_vocabulary_with_a_warning():
    with pytest.warns(UserWarning, match="nothing left to merge"):
        tokenizer = train_bpe(["aab"], 4096, progress=False)
    assert 257 <= tokenizer.vocab_size < 270
    assert tokenizer.decode(tokenizer.encode("zebra ☃")) == "zebra ☃"


@pytest.mark.parametrize("size", [0, 256])
def test_too_small_a_vocabulary_is_refused(size):
    with pytest.raises(UserError, match="at least 257"):
        train_bpe(TEXTS, size, progress=False)


def test_special_strings_in_text_stay_text(trained):
    text = f"before{END_OF_TEXT}after"
    assert trained.eos_id == trained.bos_id == trained.token_to_id(END_OF_TEXT)
    assert trained.eos_id not in trained.encode(text)
    assert trained.eos_id not in trained.encode_batch([text])[0]
    assert trained.encode(text, allow_special=True).count(trained.eos_id) == 1
    assert trained.decode(trained.encode(text)) == text


def test_special_strings_in_training_text_are_not_learned_as_special():
    texts = [f"{END_OF_TEXT} ignore the above {END_OF_TEXT}"] * 20
    tokenizer = train_bpe(texts, 280, progress=False)
    assert tokenizer.eos_id not in tokenizer.encode(texts[0])
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_control_pieces_of_sentencepiece_in_text_stay_text(sentencepiece_path):
    tokenizer = load_tokenizer(sentencepiece_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert not {1, 2} & set(tokenizer.encode("a<s>b</s>"))
    assert [id for id in tokenizer.encode("<s>The cat</s>", allow_special=True) if id < 3] == [1, 2]
    assert tokenizer.decode(tokenizer.encode("<s>The cat</s>", allow_special=True)) == "The cat"
    assert (
        tokenizer.decode(tokenizer.encode("<s>The cat</s>", allow_special=True), keep_special=True) == "<s>The cat</s>"
    )


def test_decode_leaves_special_and_unknown_ids_out_unless_asked(trained):
    ids = [*trained.encode("a"), trained.eos_id, trained.vocab_size + 7]
    assert trained.decode(ids) == "a"
    assert trained.decode(np.array(ids), keep_special=True) == f"a{END_OF_TEXT}"


def test_save_and_load_give_the_same_tokenizer(trained, sentencepiece_path, tmp_path):
    for number, tokenizer in enumerate([trained, load_tokenizer(sentencepiece_path)]):
        tokenizer.settings["chat_template"] = "{{ messages }}"
        tokenizer.save(tmp_path / str(number))
        loaded = load_tokenizer(tmp_path / str(number))
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode("The cat, the ☃") == tokenizer.encode("The cat, the ☃")
        assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        assert loaded.settings["chat_template"] == "{{ messages }}"
        assert pickle.loads(pickle.dumps(loaded)).encode("The cat") == tokenizer.encode("The cat")


def test_the_settings_beside_the_file_name_the_special_tokens(trained, tmp_path):
    trained.save(tmp_path)
    config = {"eos_token": {"content": "Ġ", "special": True}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_id == loaded.token_to_id("Ġ")
    assert loaded.bos_id is None
    assert loaded.fingerprint != trained.fingerprint


def test_truncation_and_padding_of_a_file_are_switched_off(trained, tmp_path):
    trained.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(content))
    text = "The cat sat on the mat"
    assert load_tokenizer(tmp_path).decode(load_tokenizer(file).encode(text)) == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not a readable tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "not a readable tokenizer"),
        ("tokenizer.model", b"junk", "not a readable tokenizer"),
        ("tokenizer.model", b"", "not a readable tokenizer"),
        ("vocab.json", b"{}", "merges.txt"),
        ("readme.md", b"", "has no tokenizer.json"),
    ],
)
def test_damaged_or_absent_files_get_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_path_and_two_candidates_are_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "absent")
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"several tokenizers \(a.model, b.model\)"):
        load_tokenizer(tmp_path)


def test_a_lone_surrogate_is_refused(trained):
    with pytest.raises(UserError, match="lone surrogate"):
        trained.encode("ab\ud800")
    with pytest.raises(UserError, match="lone surrogate"):
        trained.encode_batch(["ab\ud800"])


@pytest.mark.parametrize(("directory", "vectors"), [("gpt2", "gpt-2"), ("llama2", "llama-spm")])
def test_the_reference_vectors_of_llama_cpp_hold(assets, directory, vectors):
    root = assets / "data" / "tokenizers"
    tokenizer = load_tokenizer(root / directory)
    texts = (root / f"ggml-vocab-{vectors}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (root / f"ggml-vocab-{vectors}.gguf.out").read_text().split("\n")
    assert len(lines) == 47  # the last text is empty, and so are its ids
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text) == [int(id) for id in line.split()], repr(text)


@pytest.mark.parametrize(
    ("directory", "size", "ids"), [("gpt2", 50257, (50256,) * 2), ("neox20b", 50277, (0, 0)), ("llama2", 32000, (1, 2))]
)
def test_known_tokenizers_load(assets, directory, size, ids):
    tokenizer = load_tokenizer(assets / "data" / "tokenizers" / directory)
    assert (tokenizer.vocab_size, (tokenizer.bos_id, tokenizer.eos_id)) == (size, ids)
    text = "def f(x):\n        return x  # ☃ naïve\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    dummy_prefix = directory == "llama2"
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode()) + dummy_prefix
    assert (tokenizer.token_bytes()[list(ids)] == 0).all()


def test_warnings_are_not_raised_where_the_size_is_reached():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_bpe(TEXTS, 260, progress=False)
