"""Prepared once and for all: nothing lost, nothing in both splits, nothing half-written, nothing stale."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.config import DataConfig
from slmjax.data.prepare import corpus_fingerprint, open_stores, prepare, tokenizer_for
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import load_tokenizer, train_bpe

TEXTS = [f"Document {i} speaks of the number {i * i} and says naïve things ☃.\n\n" * (i % 5 + 1) for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300, progress=False)


def _source(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {"path": str(path)}


def _prepare(tmp_path, tokenizer, sources, **values):
    config = DataConfig(**{"sources": sources, "validation_fraction": 0.1} | values)
    return prepare(config, tokenizer, tmp_path / "corpus", progress=False)


def _texts(directory, tokenizer, split):
    """Text of every document of a split, by source; checks that each ends with eos and holds no other."""
    texts = {}
    for name, store in open_stores(directory, split).items():
        documents = [store.document(i).tolist() for i in range(store.num_documents)]
        assert all(d[-1] == tokenizer.eos_id and tokenizer.eos_id not in d[1:-1] for d in documents)
        texts[name] = [tokenizer.decode(d) for d in documents]
        assert store.num_bytes == sum(len(text.encode()) for text in texts[name])
        assert store.tokenizer_fingerprint == tokenizer.fingerprint
    return texts


@pytest.mark.parametrize("store_format", ["memmap", "array_record"])
def test_every_document_is_in_exactly_one_split(tmp_path, tokenizer, store_format):
    directory = _prepare(tmp_path, tokenizer, {"a": _source(tmp_path / "a.jsonl", TEXTS)}, store_format=store_format)
    train, validation = (_texts(directory, tokenizer, split)["a"] for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert not set(train) & set(validation)
    assert 5 <= len(validation) <= 40
    order = {text: i for i, text in enumerate(TEXTS)}
    assert train == sorted(train, key=order.__getitem__)
    assert load_tokenizer(directory / "tokenizer").fingerprint == tokenizer.fingerprint


@given(
    sources=st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=1, max_size=3),
    fraction=st.sampled_from([0.0, 0.001, 0.3, 0.9]),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=25)
def test_equal_texts_are_on_one_side_whatever_their_source(tmp_path_factory, tokenizer, sources, fraction, seed):
    tmp_path = tmp_path_factory.mktemp("equal")
    named = {f"s{i}": _source(tmp_path / f"{i}.jsonl", texts) for i, texts in enumerate(sources)}
    directory = _prepare(tmp_path, tokenizer, named, validation_fraction=fraction, seed=seed)
    train, validation = (_texts(directory, tokenizer, split) for split in ("train", "validation"))
    assert not set().union(*train.values()) & set().union(*validation.values())
    for i, texts in enumerate(sources):
        assert sorted(train.get(f"s{i}", []) + validation.get(f"s{i}", [])) == sorted(texts)
        if fraction and len(set(texts)) > 1:
            assert validation[f"s{i}"]
    if not fraction:
        assert not validation


def test_a_document_held_out_of_one_source_leaves_the_training_of_all(tmp_path, tokenizer):
    def place(text: str) -> float:
        digest = hashlib.blake2b(text.encode(), digest_size=8, salt=bytes(16)).digest()
        return int.from_bytes(digest, "little") / 2**64

    v, w, x, y, z = sorted("abcde", key=place)
    named = {"a": [x, z], "b": [v, w, x, y, z], "c": [y, z]}  # only v is drawn; x and y are their sources' smallest
    sources = {name: _source(tmp_path / f"{name}.jsonl", texts) for name, texts in named.items()}
    directory = _prepare(tmp_path, tokenizer, sources, validation_fraction=(place(v) + place(w)) / 2)
    assert _texts(directory, tokenizer, "validation") == {"a": [x], "b": [x, y, v], "c": [y]}
    assert _texts(directory, tokenizer, "train") == {"a": [z], "b": [w, z], "c": [z]}


def test_a_single_document_is_cut_at_blank_lines(tmp_path, tokenizer):
    paragraphs = [f"{i}: " + "words and words " * 20 + "\n\n" for i in range(60)]
    (tmp_path / "one.txt").write_text("".join(paragraphs))
    directory = _prepare(tmp_path, tokenizer, {"one": {"path": str(tmp_path / "one.txt")}}, validation_fraction=0.01)
    train, validation = (_texts(directory, tokenizer, split)["one"] for split in ("train", "validation"))
    assert len(validation) >= 1
    assert sorted("".join(train + validation)) == sorted("".join(paragraphs))
    assert all(piece.endswith("\n\n") for piece in train + validation)


def test_bos_begins_and_special_strings_in_documents_are_text(tmp_path, tokenizer):
    texts = ["<|endoftext|>injected", "plain"]
    directory = _prepare(
        tmp_path, tokenizer, {"a": _source(tmp_path / "a.jsonl", texts)}, add_bos=True, validation_fraction=0.0
    )
    store = open_stores(directory, "train")["a"]
    for i, text in enumerate(texts):
        first, *ids, last = store.document(i).tolist()
        assert (first, last) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_same_again_costs_nothing_and_a_change_rebuilds(tmp_path, tokenizer, monkeypatch):
    sources = {"a": _source(tmp_path / "a.jsonl", TEXTS[:20])}
    directory = _prepare(tmp_path, tokenizer, sources)
    inode = (directory / "prepared.json").stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr("slmjax.data.prepare.read_documents", lambda *_: pytest.fail("read again"))
        _prepare(tmp_path, tokenizer, sources)
        _prepare(tmp_path, tokenizer, sources, sequence_length=7, packing="best_fit")  # decides nothing here
    assert (directory / "prepared.json").stat().st_ino == inode
    _source(tmp_path / "a.jsonl", TEXTS[:21])
    _prepare(tmp_path, tokenizer, sources)
    assert (
        sum(store.num_documents for s in ("train", "validation") for store in open_stores(directory, s).values()) == 21
    )
    _prepare(tmp_path, tokenizer, sources, add_bos=True)
    assert open_stores(directory, "train")["a"].document(0)[0] == tokenizer.bos_id


def test_a_damaged_corpus_is_rebuilt(tmp_path, tokenizer):
    sources = {"a": _source(tmp_path / "a.jsonl", TEXTS[:20])}
    directory = _prepare(tmp_path, tokenizer, sources)
    path = directory / "train" / "a" / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    _prepare(tmp_path, tokenizer, sources)
    assert path.read_bytes() == content


def test_a_failure_leaves_what_was_there_and_no_litter(tmp_path, tokenizer):
    sources = {"a": _source(tmp_path / "a.jsonl", TEXTS[:20])}
    directory = _prepare(tmp_path, tokenizer, sources)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(b'{"text": "good"}\n{"text": bad}\n')
    with pytest.raises(UserError, match=r"b.jsonl.gz line 2"):
        _prepare(tmp_path, tokenizer, sources | {"b": {"path": str(tmp_path / "b.jsonl.gz")}})
    assert open_stores(directory, "train")["a"].num_documents > 10
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_foreign_directories_are_left_alone(tmp_path, tokenizer):
    sources = {"a": _source(tmp_path / "a.jsonl", TEXTS[:20])}
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a prepared corpus"):
        _prepare(tmp_path, tokenizer, sources)
    assert (tmp_path / "corpus" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="not a prepared corpus \\(it has no"):
        open_stores(tmp_path / "corpus", "train")


def test_what_cannot_be_prepared_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="at least one source"):
        _prepare(tmp_path, tokenizer, {})
    with pytest.raises(UserError, match="There is no data at"):
        _prepare(tmp_path, tokenizer, {"a": {"path": str(tmp_path / "absent.txt")}})
    (tmp_path / "tok").mkdir()
    tokenizer.save(tmp_path / "tok")
    (tmp_path / "tok" / "tokenizer_config.json").write_text('{"eos_token": null, "bos_token": null}')
    with pytest.raises(UserError, match="no end-of-document token"):
        _prepare(tmp_path, load_tokenizer(tmp_path / "tok"), {"a": _source(tmp_path / "a.jsonl", TEXTS)})


def test_the_fingerprint_follows_what_decides_the_corpus(tmp_path, tokenizer):
    sources = {"a": _source(tmp_path / "a.jsonl", TEXTS[:3])}
    changes = [{}, {"seed": 1}, {"add_bos": True}, {"validation_fraction": 0.5}, {"store_format": "array_record"}]
    prints = [corpus_fingerprint(DataConfig(sources=sources, **change), tokenizer) for change in changes]
    assert len(set(prints)) == len(prints)
    same = [{"sequence_length": 5}, {"packing": "best_fit"}, {"num_threads": 0}]
    assert {corpus_fingerprint(DataConfig(sources=sources, **change), tokenizer) for change in same} == {prints[0]}


def test_a_tokenizer_is_trained_once_on_training_documents(tmp_path, monkeypatch):
    sources = {"a": _source(tmp_path / "a.jsonl", [*TEXTS, *(["qqqq zzzz"] * 50)])}
    seen = []
    original = train_bpe

    def spy(texts, size, **values):
        texts = list(texts)
        seen.extend(texts)
        return original(texts, size, **values)

    monkeypatch.setattr("slmjax.data.prepare.train_bpe", spy)
    config = DataConfig(sources=sources, tokenizer="train:280", validation_fraction=0.3)
    trained = tokenizer_for(config, tmp_path / "tok", progress=False)
    directory = prepare(config, trained, tmp_path / "corpus", progress=False)
    assert trained.vocab_size == 280
    assert seen == _texts(directory, trained, "train")["a"]
    monkeypatch.setattr("slmjax.data.prepare.train_bpe", lambda *_, **__: pytest.fail("trained again"))
    assert tokenizer_for(config, tmp_path / "tok", progress=False).fingerprint == trained.fingerprint
    named = DataConfig(sources=sources, tokenizer=str(tmp_path / "tok"))
    assert tokenizer_for(named, tmp_path / "unused").fingerprint == trained.fingerprint
    with pytest.raises(UserError, match="names no tokenizer"):
        tokenizer_for(DataConfig(sources=sources), tmp_path / "tok")
    with pytest.raises(UserError, match="not a trained tokenizer"):
        tokenizer_for(config, tmp_path)


def test_processes_that_prepare_the_same_at_once_do_not_disturb_each_other(tmp_path, tokenizer):
    _source(tmp_path / "a.jsonl", TEXTS)
    tokenizer.save(tmp_path / "tok")
    program = textwrap.dedent("""
        import sys
        from slmjax.data.config import DataConfig
        from slmjax.data.prepare import open_stores, prepare
        from slmjax.tokenization.tokenizer import load_tokenizer
        for fraction in (0.1, 0.2, 0.1):
            config = DataConfig(sources={"a": {"path": "a.jsonl"}}, validation_fraction=fraction)
            prepare(config, load_tokenizer("tok"), "corpus", progress=False)
    """)
    running = [
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    train, validation = (_texts(tmp_path / "corpus", tokenizer, split)["a"] for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
