"""Batch n is a function of (seed, n, mixture): not of the past, the number of processes, or the threads."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.config import RowLayout
from slmjax.data.mixture import Mixture, epoch_sizes, repeats, rows_for_epochs
from slmjax.data.pipeline import Interleaved, training_batches, validation_batches
from slmjax.errors import UserError

T, B = 8, 6


@pytest.fixture(scope="module")
def stores(make_store, unique_documents):
    """Two sources; tokens below 10,000 are of the first."""
    rng = np.random.default_rng(0)
    first = make_store(unique_documents(rng.integers(2, 30, 60)))
    second = make_store(unique_documents(rng.integers(2, 30, 40), first=10_000))
    return Mixture({"first": first, "second": second}, {"first": 3.0})


def _only(store):
    return Mixture({"only": store})


def _batches(mixture, count, layout=RowLayout(T), **values):  # noqa: B008 (frozen)
    arguments = {"batch_size": B, "seed": 1, "num_threads": 0} | values
    return list(islice(training_batches(mixture, layout, **arguments), count))


def _equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


@given(n=st.integers(0, 10**6), packing=st.sampled_from(["concat", "best_fit"]), threads=st.integers(0, 2))
@settings(deadline=None, max_examples=15)
def test_a_batch_depends_on_its_number_and_not_on_the_past(stores, n, packing, threads):
    arguments = {"layout": RowLayout(T, packing), "batch_size": B, "seed": 1}
    one = training_batches(stores, **arguments, num_threads=threads)
    next(one)
    one.set_state({"next_index": n})
    two = training_batches(stores, **arguments, num_threads=0)
    two.set_state({"next_index": n})
    assert _equal(next(one), next(two))
    assert one.get_state() == two.get_state() == {"next_index": n + 1}


def test_resuming_at_any_step_equals_not_stopping(stores):
    whole = _batches(stores, 12)
    for stop in range(12):
        iterator = training_batches(stores, RowLayout(T), batch_size=B, seed=1, num_threads=2)
        for _ in range(stop):
            next(iterator)
        resumed = training_batches(stores, RowLayout(T), batch_size=B, seed=1, num_threads=2)
        resumed.set_state(iterator.get_state())
        assert all(_equal(batch, next(resumed)) for batch in whole[stop:])


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_batch_does_not_depend_on_how_many_processes_share_it(stores, parts):
    whole = _batches(stores, 5)
    shares = [_batches(stores, 5, rows=range(p * B // parts, (p + 1) * B // parts)) for p in range(parts)]
    for n, batch in enumerate(whole):
        joined = {name: np.concatenate([share[n][name] for share in shares]) for name in batch}
        assert _equal(batch, joined)


def test_seeds_differ_and_shapes_are_those_of_the_contract(stores):
    (batch,), (other,) = _batches(stores, 1), _batches(stores, 1, seed=2)
    assert not np.array_equal(batch["inputs"], other["inputs"])
    assert {array.shape for array in batch.values()} == {(B, T)}
    assert batch["loss_weights"].dtype == np.float32


def test_an_epoch_holds_everything_once_and_the_next_in_another_order(stores):
    store = stores.stores["first"]
    ((rows, tokens),) = epoch_sizes(_only(store), RowLayout(T)).values()
    assert tokens == sum(store.lengths - 1)
    batches = _batches(_only(store), 2 * rows, batch_size=1)
    epochs = [np.concatenate([b["inputs"] for b in part]) for part in (batches[:rows], batches[rows:])]
    assert not np.array_equal(*epochs)
    for epoch, part in zip(epochs, (batches[:rows], batches[rows:]), strict=True):
        weights = np.concatenate([b["loss_weights"] for b in part])
        assert len(set(epoch[weights > 0].tolist())) == weights.sum() == tokens


def test_the_mixture_follows_its_weights_in_every_stretch(stores):
    inputs = np.concatenate([batch["inputs"][:, 0] for batch in _batches(stores, 100)])
    for stretch in np.split(inputs, 10):
        assert abs((stretch < 10_000).mean() - 0.75) < 0.02


@given(
    weights=st.tuples(*[st.floats(0.1, 9)] * 2),
    share=st.sampled_from([0.0, 0.1, 1 / 3]),
    packing=st.sampled_from(["concat", "best_fit"]),
    count=st.integers(1, 60),
)
@settings(deadline=None, max_examples=20)
def test_repeats_are_the_rows_drawn_from_a_source_over_its_rows(stores, weights, share, packing, count):
    mixture, layout = Mixture(stores.stores, dict(zip(stores.stores, weights, strict=True))), RowLayout(T, packing)
    interleaved = Interleaved(stores.stores["second"], share, "mark") if share else None
    found = repeats(mixture, layout, count * B, interleaved_share=share)
    batches = _batches(mixture, count, layout, interleaved=interleaved)
    weighted = np.concatenate([batch["loss_weights"].any(1) for batch in batches])
    first = weighted & (np.concatenate([batch["inputs"][:, 0] for batch in batches]) < 10_000)
    rows = {name: size.rows for name, size in epoch_sizes(mixture, layout).items()}
    assert found == {"first": first.sum() / rows["first"], "second": (weighted & ~first).sum() / rows["second"]}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("epochs", [0.5, 1, 3])
def test_an_epoch_of_a_mixture_passes_over_each_source_once_where_the_weights_fit_the_sizes(stores, share, epochs):
    layout = RowLayout(T, "best_fit")
    rows = {name: size.rows for name, size in epoch_sizes(stores, layout).items()}
    fitting = Mixture(stores.stores, rows)
    count = rows_for_epochs(fitting, layout, epochs, interleaved_share=share)
    for passes in repeats(fitting, layout, count, interleaved_share=share).values():
        assert passes == pytest.approx(epochs, rel=0.02, abs=1 / min(rows.values()))  # grain rounds weights to 1%
    for mixture in (fitting, stores):  # the smallest number that is enough for every source
        count = rows_for_epochs(mixture, layout, epochs, interleaved_share=share)
        before, after = (repeats(mixture, layout, n, interleaved_share=share) for n in (count - 1, count))
        assert min(before.values()) < epochs <= min(after.values())


def test_a_corpus_smaller_than_one_batch_says_how_many_rows_there_are(make_store):
    store = make_store([np.arange(21)])
    with pytest.raises(UserError, match=r"its 20 tokens fill 3 rows of 8 and a batch has 6"):
        _batches(_only(store), 1)
    assert len(_batches(_only(store), 1, batch_size=3)) == 1


def test_nothing_to_train_on_is_refused(make_store, stores):
    with pytest.raises(UserError, match="name at least one source"):
        _batches(Mixture({}), 1)
    with pytest.raises(UserError, match=r"data\.sources\.empty has no text to train on"):
        _batches(Mixture({**stores.stores, "empty": make_store([[1]])}), 1)
    with pytest.raises(ValueError, match="do not lie in a batch of 6"):
        _batches(stores, 1, rows=[6])


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("parts", [1, 2])
def test_validation_is_every_transition_once(stores, packing, parts):
    store = stores.stores["first"]
    seen = Counter()
    for part in range(parts):
        rows = range(part * B // parts, (part + 1) * B // parts)
        for batch in validation_batches(store, RowLayout(T, packing), batch_size=B, rows=rows):
            assert batch["inputs"].shape == (B // parts, T)
            seen.update(batch["inputs"][batch["loss_weights"] > 0].tolist())
    assert set(seen.values()) == {1}
    assert len(seen) == sum(store.lengths - 1)


def test_validation_is_in_order_and_may_be_shortened(stores):
    store = stores.stores["first"]
    batches = list(validation_batches(store, RowLayout(T), batch_size=B, max_batches=2))
    inputs = np.concatenate([batch["inputs"].ravel() for batch in batches])
    assert len(batches) == 2
    assert (np.diff(inputs) > 0).all()


def test_the_road_is_fast_enough(make_store):
    """The aim is 1M tokens/s on two free cores; half of it here, for a loaded machine."""
    import time

    rng = np.random.default_rng(0)
    store = make_store([rng.integers(0, 4096, length) for length in rng.geometric(1 / 400, 3000)], vocab_size=4096)
    iterator = training_batches(_only(store), RowLayout(1024), batch_size=32)
    next(iterator)
    start = time.perf_counter()
    for _ in range(30):
        next(iterator)
    assert 30 * 32 * 1024 / (time.perf_counter() - start) > 5e5
    start = time.perf_counter()
    iterator.set_state({"next_index": 10**6})
    next(iterator)
    assert time.perf_counter() - start < 1
