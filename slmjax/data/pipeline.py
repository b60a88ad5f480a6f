"""Stores to batches: a mixture of shuffled sources whose n-th batch depends on (seed, n, mixture) alone.

Item n of the iterator holds the rows {n · batch_size + r : r in rows} of one global sequence of rows. A process names
the rows that it holds, so the sequence is the same however many processes share it; the state of the iterator is n.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from slmjax.data.config import RowLayout
from slmjax.data.mixture import Mixture, interleaved_rows
from slmjax.data.packing import Documents, PackedRows, Row, empty_row, stack_rows
from slmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """A second stream of rows, put evenly between the rows of a mixture.

    Attributes:
        documents: what the rows are made of; they are cut from one stream ("concat"), whatever the mixture's layout.
        share: of all rows, in (0, 1).
        mark: the name of a field that takes the loss weights of these rows, float32 [T]; their `loss_weights` are then
            0, and the mixture's rows have zeros in the field. None leaves the rows as they are, to be learned.
    """

    documents: Documents
    share: float
    mark: str | None = None


class _Interleaving:
    """Of the first n rows floor(n * share) are of the second stream; the others are the mixture's, in its order."""

    def __init__(self, mixture: grain.MapDataset, second: grain.MapDataset, share: float, mark: str | None):
        self._mixture, self._second, self._share, self._mark = mixture, second, share, mark

    def __getitem__(self, n: int) -> Row:
        before, after = interleaved_rows(n, self._share), interleaved_rows(n + 1, self._share)
        row = self._second[before] if after > before else self._mixture[n - before]
        if self._mark is None:
            return row
        zeros = np.zeros_like(row["loss_weights"])
        if after > before:
            return {**row, "loss_weights": zeros, self._mark: row["loss_weights"]}
        return {**row, self._mark: zeros}


class _Batches:
    """Item n: the rows of batch n that this process holds, stacked to [len(rows), T]."""

    def __init__(self, all_rows: grain.MapDataset | _Interleaving, batch_size: int, rows: Sequence[int]):
        self._all_rows, self._batch_size, self._rows = all_rows, batch_size, tuple(rows)

    def __len__(self) -> int:
        return sys.maxsize // (2 * self._batch_size)

    def __getitem__(self, n: int) -> Row:
        return stack_rows(self._all_rows[n * self._batch_size + row] for row in self._rows)


def training_batches(
    mixture: Mixture,
    layout: RowLayout,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    num_threads: int = 2,
    prefetch: int = 8,
    interleaved: Interleaved | None = None,
) -> grain.DatasetIterator[Row]:
    """An endless iterator over training batches.

    Each source's rows are shuffled globally, anew in every epoch, and the sources are interleaved in proportion to
    their weights (grain's mixing: deterministic and even; see `Mixture.proportions`).

    Args:
        mixture: what to train on.
        layout: how documents become rows.
        batch_size: B, the global number of rows in a batch.
        rows: which of the B rows this process holds; all by default.
        seed: of the order; batches are a pure function of (seed, n, mixture, layout, batch_size, interleaved).
        num_threads, prefetch: threads that make batches, and batches made ahead.
        interleaved: rows to put in between. The other rows and their order are as they would be without them.

    Returns:
        Items are dicts of arrays [len(rows), T] as in `PackedRows`, and the field `interleaved.mark` where one is set.
        `get_state()` is {"next_index": n} and `set_state` jumps there at once.

    Raises:
        UserError: fewer rows than one batch needs.
    """
    rows = range(batch_size) if rows is None else rows
    if not mixture.stores:
        raise UserError("There is nothing to train on: name at least one source in data.sources.")
    if not all(0 <= row < batch_size for row in rows):
        raise ValueError(f"The rows {list(rows)} of this process do not lie in a batch of {batch_size}.")
    sources = [
        PackedRows(store, layout.sequence_length, layout.packing, _derived_seed(seed, i, "order"))
        for i, store in enumerate(mixture.stores.values())
    ]
    _require_enough(mixture, sources, layout, batch_size)
    shuffled = [_shuffle(source, seed, i) for i, source in enumerate(sources)]
    all_rows = shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, mixture.proportions)
    if interleaved is not None:
        second = PackedRows(interleaved.documents, layout.sequence_length, "concat", _derived_seed(seed, -1, "order"))
        if len(second) == 0:
            raise UserError(f"{interleaved.documents.name} has no text for the share of the rows that it is to fill.")
        second = _shuffle(second, seed, -1)
        all_rows = _Interleaving(all_rows, second, interleaved.share, interleaved.mark)
    batches = grain.MapDataset.source(_Batches(all_rows, batch_size, rows))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    return iter(batches.to_iter_dataset(options))


def validation_batches(
    store: Documents,
    layout: RowLayout,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    max_batches: int | None = None,
) -> Iterator[Row]:
    """Every transition of `store` exactly once, in the store's order, in batches [len(rows), T].

    The last batch is filled up with rows of padding (weight 0), so that all shapes are equal on all processes.
    """
    rows = range(batch_size) if rows is None else rows
    source = PackedRows(store, layout.sequence_length, layout.packing, seed=None)
    num_batches = -(-len(source) // batch_size)
    for n in range(num_batches if max_batches is None else min(num_batches, max_batches)):
        numbers = [n * batch_size + row for row in rows]
        yield stack_rows(source[i] if i < len(source) else empty_row(layout.sequence_length) for i in numbers)


def _shuffle(source: PackedRows, seed: int, number: int) -> grain.MapDataset:
    """All rows again and again, in another order in each pass."""
    return grain.MapDataset.source(source).shuffle(seed=_derived_seed(seed, number, "shuffle")).repeat()


def _require_enough(mixture: Mixture, sources: Sequence[PackedRows], layout: RowLayout, batch_size: int) -> None:
    for name, source in zip(mixture.stores, sources, strict=True):
        if len(source) == 0:
            raise UserError(f"data.sources.{name} has no text to train on: give it some, or leave the source out.")
    num_rows = sum(map(len, sources))
    if num_rows < batch_size:
        tokens = sum(source.num_transitions for source in sources)
        raise UserError(
            f"The corpus is smaller than one batch, since its {tokens:,} tokens fill {num_rows} rows of "
            f"{layout.sequence_length} and a batch has {batch_size}: add data, or lower training.batch_size or "
            "data.sequence_length."
        )


def _derived_seed(seed: int, source: int, purpose: str) -> int:
    """32 bits; hashed, because grain shuffles epoch e with seed + e and neighbouring seeds must not meet."""
    digest = hashlib.blake2b(f"{seed} {source} {purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
