"""What was written is read back; what is damaged is not believed."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.store import StoreWriter, TokenStore, token_dtype
from slmjax.errors import UserError

ENCODINGS = ["memmap", "array_record"]
tokens = st.lists(st.integers(0, 999), max_size=20)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(documents=st.lists(tokens, max_size=8), vocab_size=st.sampled_from([1000, 70_000]))
@settings(deadline=None, max_examples=30)
def test_documents_come_back(make_store, encoding, documents, vocab_size):
    store = make_store(documents, encoding=encoding, vocab_size=vocab_size)
    assert store.num_documents == len(documents)
    assert store.num_tokens == sum(map(len, documents)) == store.num_bytes / 3
    assert store.lengths.tolist() == [len(document) for document in documents]
    for index, document in enumerate(documents):
        assert store.document(index).tolist() == document
        assert store.document(index).dtype == np.int32


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(
    data=st.data(), documents=st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=9), min_size=1, max_size=5)
)
@settings(deadline=None, max_examples=30)
def test_pieces_are_slices_of_documents(make_store, encoding, data, documents):
    store = make_store(documents, encoding=encoding)
    pieces = []
    for _ in range(data.draw(st.integers(1, 5))):
        index = data.draw(st.integers(0, len(documents) - 1))
        start = data.draw(st.integers(0, len(documents[index])))
        pieces.append((index, start, data.draw(st.integers(0, len(documents[index]) - start))))
    expected = [token for index, start, length in pieces for token in documents[index][start : start + length]]
    assert store.pieces(*np.array(pieces).T).tolist() == expected


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_pickled_store_opens_its_files_again(make_store, encoding):
    store = make_store([[1, 2], [3]], encoding=encoding)
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000
    assert copy.document(1).tolist() == [3]


def test_token_types_are_as_small_as_the_vocabulary_allows():
    assert token_dtype(1 << 16) == np.uint16
    assert token_dtype((1 << 16) + 1) == np.uint32


def test_ids_beyond_the_tokenizer_are_not_written(tmp_path):
    for bad in (10, -1):
        with (
            pytest.raises(UserError, match=f"token id {bad} is not in the vocabulary of 10"),
            StoreWriter(tmp_path / str(bad), vocab_size=10, encoding="memmap", metadata={}) as writer,
        ):
            writer.append([1, bad], 1)
        with pytest.raises(UserError, match="not a token store"):  # what failed half-way is no store
            TokenStore(tmp_path / str(bad))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_model_with_too_small_a_vocabulary_is_refused(make_store, encoding):
    store = make_store([[1, 2], [700, 3]], encoding=encoding)
    store.check_vocabulary(701)
    with pytest.raises(UserError, match=r"token id 700 in .* is beyond the vocabulary of 700: .* at least 701"):
        store.check_vocabulary(700)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = {
    "tokens cut": (lambda d: _cut(d / "tokens.bin"), r"tokens.bin has 9 bytes instead of 10"),
    "tokens gone": (lambda d: (d / "tokens.bin").unlink(), "tokens.bin is missing"),
    "offsets cut": (lambda d: _cut(d / "offsets.npy"), "offsets.npy"),
    "offsets gone": (lambda d: (d / "offsets.npy").unlink(), "offsets.npy is missing"),
    "offsets shuffled": (lambda d: np.save(d / "offsets.npy", np.array([0, 9, 2, 5])), "offsets.npy does not fit"),
    "offsets beyond": (lambda d: np.save(d / "offsets.npy", np.array([0, 1, 2, 6])), "offsets.npy does not fit"),
    "offsets of objects": (lambda d: np.save(d / "offsets.npy", np.array([0, None])), "offsets.npy"),
    "meta gone": (lambda d: (d / "meta.json").unlink(), "not a token store"),
    "meta cut": (lambda d: _cut(d / "meta.json") or _cut(d / "meta.json"), "meta.json is damaged"),
    "meta of a list": (lambda d: (d / "meta.json").write_text("[]"), "meta.json is damaged"),
    "meta with a huge count": (lambda d: _edit(d / "meta.json", num_documents=10**15), "offsets.npy does not fit"),
    "meta with a wrong type": (lambda d: _edit(d / "meta.json", num_tokens="5"), "meta.json is damaged"),
    "meta with a wrong dtype": (lambda d: _edit(d / "meta.json", dtype="O"), "meta.json is damaged"),
    "meta of the future": (lambda d: _edit(d / "meta.json", format_version=99), "format 99"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(make_store, tmp_path, kind):
    directory = shutil.copytree(make_store([[1], [2], [3, 4, 5]], vocab_size=10).directory, tmp_path / "store")
    damage, message = DAMAGE[kind]
    damage(directory)
    with pytest.raises(UserError, match=message):
        TokenStore(directory)


def test_a_damaged_array_record_is_named(make_store, tmp_path):
    directory = shutil.copytree(make_store([[1], [2]], encoding="array_record").directory, tmp_path / "store")
    path = directory / "tokens.array_record"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"tokens.array_record (is damaged|has 0 records instead of 2)"):
        TokenStore(directory)


def test_array_record_without_its_package_says_what_to_install(make_store, monkeypatch):
    store = make_store([[1, 2]], encoding="array_record")
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(UserError, match=r"store_format=array_record needs .*install slmjax\[data\]"):
        make_store([[1, 2]], encoding="array_record")
    with pytest.raises(UserError, match=r"tokens.array_record needs .*install slmjax\[data\]"):
        TokenStore(store.directory)
