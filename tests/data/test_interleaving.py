"""A second stream of rows between a mixture's: an exact share, evenly, and the same batch n after any stop."""

import hashlib

import numpy as np
import pytest

from slmjax.data.config import RowLayout
from slmjax.data.mixture import Mixture
from slmjax.data.packing import BATCH_FIELDS
from slmjax.data.pipeline import Interleaved, training_batches
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


MIXTURE = Mixture({"domain": Texts("domain", 0, 10), "domain 2": Texts("domain 2", 20, 10)}, {"domain 2": 2.0})
GENERAL = Texts("general", 100, 10)


def batches(interleaved=None, count=25, packing="concat"):
    layout = RowLayout(T, packing)
    iterator = training_batches(MIXTURE, layout, interleaved=interleaved, batch_size=B, seed=3, num_threads=0)
    return [next(iterator) for _ in range(count)]


def is_general(batch):
    return batch["inputs"][:, 0] >= 100


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5])
def test_the_share_is_exact_and_even_and_the_other_rows_are_what_they_were(share):
    found = batches(Interleaved(GENERAL, share))
    general = np.concatenate([is_general(batch) for batch in found])
    assert general.sum() == round(share * len(general))
    for n in range(1, len(general)):
        assert general[:n].sum() == int(np.floor(n * share + 1e-9))
    rows = np.concatenate([batch["inputs"] for batch in found])[~general]
    alone = np.concatenate([batch["inputs"] for batch in batches()])[: len(rows)]
    np.testing.assert_array_equal(rows, alone)
    assert all(set(batch) == set(BATCH_FIELDS) for batch in found)


def test_batch_n_depends_on_n_alone():
    interleaved = Interleaved(GENERAL, 0.25, mark="mark")
    whole = batches(interleaved, 9)
    parts = [
        training_batches(MIXTURE, RowLayout(T), batch_size=B, rows=rows, seed=3, interleaved=interleaved)
        for rows in ([0, 1], [2, 3])
    ]
    for part in parts:
        part.set_state({"next_index": 7})
    for n in (7, 8):
        both = [next(part) for part in parts]
        for name, array in whole[n].items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in both]), array)


def test_marked_rows_move_their_weights_to_the_field():
    for batch in batches(Interleaved(GENERAL, 0.25, mark="kl_weights")):
        general = is_general(batch)
        assert (batch["loss_weights"][general] == 0).all() and (batch["kl_weights"][~general] == 0).all()
        assert (batch["loss_weights"][~general].sum(axis=1) > 0).all()
        assert (batch["kl_weights"][general].sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("interleaved", "concat", "best_fit"),
    [
        (None, "fb553936a5a10801", "8e8cafd03db444c2"),
        (Interleaved(GENERAL, 0.25), "dfe5220caedffb77", "a5627c50b03a64cb"),
        (Interleaved(GENERAL, 0.3, "kl_weights"), "02e7c9a53aa359af", "fcef90bdaaa47ea4"),
    ],
)
def test_batches_are_those_of_earlier_versions(interleaved, concat, best_fit):
    """A run of an earlier version goes on with the same data (digests of commit 66381e9)."""
    for packing, expected in (("concat", concat), ("best_fit", best_fit)):
        digest = hashlib.sha256()
        for batch in batches(interleaved, 40, packing):
            for name in sorted(batch):
                digest.update(name.encode() + batch[name].dtype.str.encode() + batch[name].tobytes())
        assert digest.hexdigest()[:16] == expected


def test_text_that_is_none_is_refused():
    with pytest.raises(UserError, match="empty has no text"):
        batches(Interleaved(Texts("empty", 100, 0), 0.25))
