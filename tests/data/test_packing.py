"""Every transition inside a document is trained exactly once, in its own context, whatever the packing."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.packing import BATCH_FIELDS, PackedRows, best_fit_decreasing, empty_row, make_batch, stack_rows

lengths_of_documents = st.lists(st.integers(0, 40), max_size=20)
packings = pytest.mark.parametrize("packing", ["concat", "best_fit"])


def _rows(store, T, packing, seed=0):
    source = PackedRows(store, T, packing, seed)
    return [source[i] for i in range(len(source))]


@packings
@given(lengths=lengths_of_documents, T=st.integers(1, 12), seed=st.none() | st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_every_transition_is_trained_exactly_once(make_store, unique_documents, packing, lengths, T, seed):
    documents = unique_documents(lengths)
    trained = Counter()
    for row in _rows(make_store(documents), T, packing, seed):
        on = row["loss_weights"] > 0
        trained.update(zip(row["inputs"][on].tolist(), row["targets"][on].tolist(), strict=True))
    expected = Counter((int(a), int(b)) for d in documents for a, b in pairwise(d))
    assert trained == expected


@packings
@given(lengths=lengths_of_documents, T=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_rows_keep_the_contract(make_store, unique_documents, packing, lengths, T):
    """Segments count from 1 and are runs of one document; positions restart in each; padding comes last, silent."""
    documents = unique_documents(lengths)
    owner = {int(token): i for i, document in enumerate(documents) for token in document}
    for row in _rows(make_store(documents), T, packing):
        assert {name: (array.shape, array.dtype) for name, array in row.items()} == {
            **dict.fromkeys(("inputs", "targets", "positions", "segments"), ((T,), np.int32)),
            "loss_weights": ((T,), np.float32),
        }
        filled = int((row["segments"] > 0).sum())
        assert (row["segments"][:filled] > 0).all()
        assert (row["loss_weights"] == (row["segments"] > 0)).all()
        assert all((array[filled:] == 0).all() for array in row.values())
        runs = np.diff(row["segments"][:filled])
        assert row["segments"][0] == 1
        assert set(runs.tolist()) <= {0, 1}
        for segment in range(1, row["segments"].max() + 1):
            inside = row["segments"] == segment
            inputs = row["inputs"][inside]
            assert (row["positions"][inside] == np.arange(inside.sum())).all()
            assert (np.diff(inputs) == 1).all()
            assert len({owner[int(token)] for token in [*inputs, *row["targets"][inside]]}) == 1


@given(lengths=lengths_of_documents, T=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_concat_fills_every_row_but_the_last(make_store, unique_documents, lengths, T):
    rows = _rows(make_store(unique_documents(lengths)), T, "concat")
    assert all(row["loss_weights"].all() for row in rows[:-1])
    assert len(rows) == -(-sum(max(length - 1, 0) for length in lengths) // T)


@given(lengths=lengths_of_documents, T=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_best_fit_cuts_only_documents_that_no_row_holds(make_store, unique_documents, lengths, T):
    pieces = Counter()
    documents = unique_documents(lengths)
    owner = {int(token): i for i, document in enumerate(documents) for token in document}
    for row in _rows(make_store(documents), T, "best_fit"):
        for segment in range(1, row["segments"].max() + 1):
            pieces[owner[int(row["inputs"][row["segments"] == segment][0])]] += 1
    for index, count in pieces.items():
        assert count == -(-(len(documents[index]) - 1) // T)


def test_without_a_seed_the_order_is_the_stores_and_with_one_it_is_a_permutation(make_store, unique_documents):
    store = make_store(unique_documents([5] * 50))
    first = {seed: [int(row["inputs"][0]) for row in _rows(store, 4, "concat", seed)] for seed in (None, 1, 2)}
    assert first[None] == sorted(first[None])
    assert sorted(first[1]) == sorted(first[2]) == first[None]
    assert first[1] != first[2] != first[None]


def test_the_last_input_of_a_row_has_the_next_rows_first_input_as_target(make_store):
    rows = _rows(make_store([np.arange(9)]), 4, "concat", seed=None)
    assert [row["inputs"].tolist() for row in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [row["targets"].tolist() for row in rows] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert rows[1]["positions"].tolist() == [0, 1, 2, 3]


@packings
def test_the_encoding_does_not_matter(make_store, unique_documents, packing):
    documents = unique_documents([7, 1, 30, 2, 0, 12])
    both = [stack_rows(_rows(make_store(documents, encoding=e), 8, packing)) for e in ("memmap", "array_record")]
    for name in both[0]:
        np.testing.assert_array_equal(both[0][name], both[1][name])


def test_rows_out_of_range_are_refused(make_store):
    source = PackedRows(make_store([[1, 2, 3]]), 2)
    assert len(source) == 1
    for index in (-1, 1):
        with pytest.raises(IndexError):
            source[index]


def _naive_best_fit_decreasing(sizes, capacity):
    """The definition, item by item: the fullest bin with room, the newest-used room first decided by fullness alone."""
    rooms, contents = [], []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            at = rooms.index(min(fitting))
        else:
            rooms.append(capacity)
            contents.append([])
            at = len(rooms) - 1
        rooms[at] -= size
        contents[at].append(size)
    return sorted(rooms)


@given(st.integers(1, 30).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
@settings(deadline=None, max_examples=200)
def test_grouped_best_fit_equals_the_naive_one(case):
    capacity, sizes = case
    bins, num_bins = best_fit_decreasing(np.array(sizes, np.int64), capacity)
    loads = np.bincount(bins, weights=sizes, minlength=num_bins) if sizes else np.zeros(0)
    assert sorted((capacity - loads).tolist()) == _naive_best_fit_decreasing(sizes, capacity)


def test_best_fit_of_a_million_documents_is_fast_and_full():
    import time

    sizes = np.minimum(np.random.default_rng(0).geometric(1 / 300, 1_000_000), 1024)
    start = time.perf_counter()
    _, num_bins = best_fit_decreasing(sizes, 1024)
    assert time.perf_counter() - start < 5
    assert sizes.sum() / (num_bins * 1024) > 0.99


def test_a_batch_of_whole_documents_is_what_packing_makes_of_them(make_store):
    tokens = np.random.default_rng(0).integers(1, 100, (3, 9))
    batch, packed = make_batch(tokens), stack_rows(_rows(make_store(tokens), 8, "best_fit", seed=None))
    assert list(batch) == list(packed) == list(BATCH_FIELDS) == list(empty_row(8))
    for name, dtype in BATCH_FIELDS.items():
        assert batch[name].dtype == packed[name].dtype == dtype
        np.testing.assert_array_equal(batch[name], packed[name])
