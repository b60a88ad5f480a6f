"""Stores to batches: a mixture of shuffled sources whose n-th batch depends on (seed, n, mixture) alone.

Item n of the iterator holds the rows {n · batch_size + r : r in rows} of one global sequence of rows. A process names
the rows that it holds, so the sequence is the same however many processes share it; the state of the iterator is n.
"""

import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction

import grain
import numpy as np

from slmjax.data.config import Packing
from slmjax.data.packing import Documents, PackedRows, Row, empty_row, stack_rows
from slmjax.errors import UserError


class _Replayed:
    """Rows of the mixture with rows of general text in between, evenly: of the first n rows floor(n share) are general.

    Each row has `kl_weights` besides: where general text is `held`, its loss weights, which then are 0.
    """

    def __init__(self, mixture: grain.MapDataset, general: grain.MapDataset, share: Fraction, held: bool):
        self._mixture, self._general, self._share, self._held = mixture, general, share, held

    def __getitem__(self, n: int) -> Row:
        before, after = math.floor(n * self._share), math.floor((n + 1) * self._share)
        row = self._general[before] if after > before else self._mixture[n - before]
        if not self._held:
            return row
        nothing = np.zeros_like(row["loss_weights"])
        if after > before:
            return {**row, "loss_weights": nothing, "kl_weights": row["loss_weights"]}
        return {**row, "kl_weights": nothing}


class _Batches:
    """Item n: the rows of batch n that this process holds, stacked to [len(rows), T]."""

    def __init__(self, mixture: grain.MapDataset | _Replayed, batch_size: int, rows: Sequence[int]):
        self._mixture, self._batch_size, self._rows = mixture, batch_size, tuple(rows)

    def __len__(self) -> int:
        return sys.maxsize // (2 * self._batch_size)

    def __getitem__(self, n: int) -> Row:
        return stack_rows(self._mixture[n * self._batch_size + row] for row in self._rows)


@dataclasses.dataclass(frozen=True)
class Replay:
    """General text that is mixed into training.

    Attributes:
        documents: the text.
        share: of all rows, in (0, 1).
        held: its tokens are not learned (`loss_weights` 0) but marked, with the weights they would have had, in
            `kl_weights`.
    """

    documents: Documents
    share: float
    held: bool = False


def training_batches(
    stores: Sequence[tuple[Documents, float]],
    *,
    sequence_length: int,
    packing: Packing = "concat",
    batch_size: int,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    num_threads: int = 2,
    prefetch: int = 8,
    replay: Replay | None = None,
) -> grain.DatasetIterator[Row]:
    """An endless iterator over training batches.

    Each source's rows are shuffled globally, anew in every epoch, and the sources are interleaved in proportion to
    their weights (grain's mixing: deterministic and even; it rounds each weight down to 1% of the smallest).

    Args:
        stores: (documents, weight) of each source.
        sequence_length: T.
        packing: see `PackedRows`.
        batch_size: B, the global number of rows in a batch.
        rows: which of the B rows this process holds; all by default.
        seed: of the order; batches are a pure function of (seed, n, stores and weights, T, packing, batch_size).
        num_threads, prefetch: threads that make batches, and batches made ahead.
        replay: general text in between. The other rows and their order are as they would be without it.

    Returns:
        Items are dicts of arrays [len(rows), T] as in `PackedRows`, and `kl_weights` where replayed text is held.
        `get_state()` is {"next_index": n} and `set_state` jumps there at once.

    Raises:
        UserError: fewer rows than one batch needs.
    """
    rows = range(batch_size) if rows is None else rows
    if not stores:
        raise UserError("there is nothing to train on: name at least one source")
    if not all(0 <= row < batch_size for row in rows):
        raise UserError(f"the rows {list(rows)} of this process do not lie in a batch of {batch_size}")
    sources = [
        PackedRows(store, sequence_length, packing, _derived_seed(seed, i, "order"))
        for i, (store, _) in enumerate(stores)
    ]
    _require_enough(stores, sources, sequence_length, batch_size)
    shuffled = [
        grain.MapDataset.source(source).shuffle(seed=_derived_seed(seed, i, "shuffle")).repeat()
        for i, source in enumerate(sources)
    ]
    mixture = shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, [weight for _, weight in stores])
    if replay is not None:
        general = PackedRows(replay.documents, sequence_length, "concat", _derived_seed(seed, -1, "order"))
        if len(general) == 0:
            raise UserError(f"{replay.documents.name} holds no text to replay: give forgetting.corpus some")
        order = grain.MapDataset.source(general).shuffle(seed=_derived_seed(seed, -1, "shuffle")).repeat()
        mixture = _Replayed(mixture, order, Fraction(replay.share).limit_denominator(10**6), replay.held)
    batches = grain.MapDataset.source(_Batches(mixture, batch_size, rows))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    return iter(batches.to_iter_dataset(options))


def validation_batches(
    store: Documents,
    *,
    sequence_length: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
    packing: Packing = "concat",
    max_batches: int | None = None,
) -> Iterator[Row]:
    """Every transition of `store` exactly once, in the store's order, in batches [len(rows), T].

    The last batch is filled up with rows of padding (weight 0), so that all shapes are equal on all processes.
    """
    rows = range(batch_size) if rows is None else rows
    source = PackedRows(store, sequence_length, packing, seed=None)
    num_batches = -(-len(source) // batch_size)
    for n in range(num_batches if max_batches is None else min(num_batches, max_batches)):
        numbers = [n * batch_size + row for row in rows]
        yield stack_rows(source[i] if i < len(source) else empty_row(sequence_length) for i in numbers)


def epoch_size(store: Documents, *, sequence_length: int, packing: Packing = "concat") -> tuple[int, int]:
    """Rows that hold `store` once, and the tokens (targets) that they train."""
    source = PackedRows(store, sequence_length, packing, seed=None)
    return len(source), source.num_transitions


def _require_enough(
    stores: Sequence[tuple[Documents, float]], sources: Sequence[PackedRows], sequence_length: int, batch_size: int
) -> None:
    for (store, _), source in zip(stores, sources, strict=True):
        if len(source) == 0:
            raise UserError(f"{store.name} holds no text to train on: give its source some, or leave the source out")
    num_rows = sum(map(len, sources))
    if num_rows < batch_size:
        tokens = sum(source.num_transitions for source in sources)
        raise UserError(
            f"the corpus is smaller than one batch: its {tokens:,} tokens fill {num_rows} rows of {sequence_length}, "
            f"a batch has {batch_size}: add data, or lower the batch size or the sequence length"
        )


def _derived_seed(seed: int, source: int, purpose: str) -> int:
    """32 bits; hashed, because grain shuffles epoch e with seed + e and neighbouring seeds must not meet."""
    digest = hashlib.blake2b(f"{seed} {source} {purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


__all__ = ["Replay", "epoch_size", "training_batches", "validation_batches"]
