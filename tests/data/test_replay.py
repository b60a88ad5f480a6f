"""Replayed general text: an exact share of the rows, evenly, and the same batch n on any machine after any stop."""

import numpy as np
import pytest

from slmjax.data.pipeline import Replay, training_batches
from slmjax.errors import UserError

T, B = 8, 4


class Texts:
    """Documents of 20 tokens, each of one id from `first` on."""

    def __init__(self, name, first, count):
        self.name, self.first = name, first
        self.lengths = np.full(count, 20, np.int64)

    def pieces(self, documents, starts, lengths):
        return np.repeat(self.first + documents, lengths).astype(np.int32)

    def loss_weights(self, documents, starts, lengths):
        return np.ones(int(lengths.sum()), np.float32)


def batches(replay=None, count=25, **changes):
    arguments = {"sequence_length": T, "batch_size": B, "seed": 3, "num_threads": 0} | changes
    stores = [(Texts("domain", 0, 10), 1.0), (Texts("domain 2", 20, 10), 2.0)]
    iterator = training_batches(stores, replay=replay, **arguments)
    return [next(iterator) for _ in range(count)]


def is_general(batch):
    return batch["inputs"][:, 0] >= 100


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5])
def test_the_share_is_exact_and_even_and_the_other_rows_are_what_they_were(share):
    found = batches(Replay(Texts("general", 100, 10), share))
    general = np.concatenate([is_general(batch) for batch in found])
    assert general.sum() == round(share * len(general))
    for n in range(1, len(general)):
        assert general[:n].sum() == int(np.floor(n * share + 1e-9))
    rows = np.concatenate([batch["inputs"] for batch in found])[~general]
    alone = np.concatenate([batch["inputs"] for batch in batches()])[: len(rows)]
    np.testing.assert_array_equal(rows, alone)
    assert all("kl_weights" not in batch for batch in found)


def test_batch_n_depends_on_n_alone():
    replay = Replay(Texts("general", 100, 10), 0.25)
    whole = batches(replay, 9)
    stores = [(Texts("domain", 0, 10), 1.0), (Texts("domain 2", 20, 10), 2.0)]
    parts = [
        training_batches(stores, sequence_length=T, batch_size=B, rows=rows, seed=3, replay=replay)
        for rows in ([0, 1], [2, 3])
    ]
    for part in parts:
        part.set_state({"next_index": 7})
    for n in (7, 8):
        both = [next(part) for part in parts]
        for name, array in whole[n].items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in both]), array)


def test_held_rows_are_marked_and_not_learned():
    for batch in batches(Replay(Texts("general", 100, 10), 0.25, held=True)):
        general = is_general(batch)
        assert (batch["loss_weights"][general] == 0).all() and (batch["kl_weights"][~general] == 0).all()
        assert (batch["loss_weights"][~general].sum(axis=1) > 0).all()
        assert (batch["kl_weights"][general].sum(axis=1) > 0).all()


def test_text_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"forgetting\.corpus"):
        batches(Replay(Texts("general", 100, 0), 0.25))
