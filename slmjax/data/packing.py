"""Documents to rows: every row a pure function of its number.

A document `t0 t1 … eos` trains the transitions t0→t1, …, t(n-1)→eos. Rows are filled with transitions, not tokens: the
input is the token before the arrow, the target the one after. So eos is a target and never an input, no target lies in
another document, no place is lost at a document's end, and a document that is cut goes on in the next row with the
transition it would have had next.
"""

import bisect
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from slmjax.data.config import Packing

Row = dict[str, np.ndarray]

# The fields of a batch, each [B, T], and of a row, each [T].
BATCH_FIELDS: dict[str, type[np.generic]] = {
    "inputs": np.int32,
    "targets": np.int32,
    "positions": np.int32,
    "segments": np.int32,
    "loss_weights": np.float32,
}


class Documents(Protocol):
    """What rows are made of: a `TokenStore`, or the examples of fine-tuning."""

    @property
    def name(self) -> str:
        """What an error calls them."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents]: the tokens of each."""

    def pieces(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32 [sum(lengths)]: the pieces document[start : start + length], one after another."""

    def loss_weights(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """float32 [sum(lengths)]: how much each token of the pieces counts as a target."""

    def check_vocabulary(self, vocab_size: int) -> None:
        """UserError unless every token id is below `vocab_size`."""


class PackedRows:
    """A random-access source of rows of T transitions.

    `rows[i]` is a dict of arrays [T]: `inputs`, `targets`, `positions` (from 0 in each segment of the row), `segments`
    (from 1 in the row; 0 is padding), all int32, and `loss_weights` (float32; the documents' own, and 0 in padding).

    Args:
        store: the documents.
        sequence_length: T.
        packing: "concat": the documents, in an order that `seed` permutes, are one stream, cut every T transitions.
            "best_fit": documents longer than T are cut every T; the pieces are packed best-fit decreasing (each into
            the fullest row that still has room), so that every other document is whole.
        seed: of the permutation; None keeps the order of the store.
    """

    def __init__(self, store: Documents, sequence_length: int, packing: Packing = "concat", seed: int | None = 0):
        self._store = store
        self._T = sequence_length
        transitions = np.maximum(store.lengths - 1, 0)
        self.num_transitions = int(transitions.sum())
        documents = np.flatnonzero(transitions)
        if seed is not None:
            documents = np.random.default_rng(seed).permutation(documents)
        self._place: _Concatenated | _BestFit
        if packing == "concat":
            self._place = _Concatenated(documents, transitions[documents], sequence_length)
        else:
            self._place = _BestFit(documents, transitions[documents], sequence_length)

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        documents, starts, lengths = self._place[index]
        # A piece of n transitions is n + 1 tokens; all but its last are inputs, all but its first are targets.
        tokens = self._store.pieces(documents, starts, lengths + 1)
        filled = int(lengths.sum())
        piece = np.repeat(np.arange(len(lengths)), lengths)
        here = np.arange(filled)
        row = empty_row(self._T)
        row["inputs"][:filled] = tokens[here + piece]
        row["targets"][:filled] = tokens[here + piece + 1]
        row["positions"][:filled] = here - (np.cumsum(lengths) - lengths)[piece]
        row["segments"][:filled] = piece + 1
        row["loss_weights"][:filled] = self._store.loss_weights(documents, starts + 1, lengths)
        return row


def empty_row(sequence_length: int) -> Row:
    """A row of padding: zeros everywhere."""
    return {name: np.zeros(sequence_length, dtype) for name, dtype in BATCH_FIELDS.items()}


def make_batch(tokens: np.ndarray) -> Row:
    """The batch [B, T] that learns integers [B, T + 1], each row being one document of which every token counts."""
    inputs = tokens[:, :-1]
    fields = {
        "inputs": inputs,
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape),
        "segments": np.ones(inputs.shape),
        "loss_weights": np.ones(inputs.shape),
    }
    return {name: fields[name].astype(dtype) for name, dtype in BATCH_FIELDS.items()}


def stack_rows(rows: Iterable[Row]) -> Row:
    """Rows of [T] to a batch of [B, T]."""
    rows = list(rows)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


Pieces = tuple[np.ndarray, np.ndarray, np.ndarray]  # documents, starts and lengths in transitions, each [n]


class _Concatenated:
    """Row i is transitions [i T, (i + 1) T) of the stream; two binary searches find its documents."""

    def __init__(self, documents: np.ndarray, transitions: np.ndarray, sequence_length: int):
        self._documents = documents
        self._ends = np.cumsum(transitions)
        self._total = int(self._ends[-1]) if len(documents) else 0
        self._T = sequence_length

    def __len__(self) -> int:
        return -(-self._total // self._T)

    def __getitem__(self, row: int) -> Pieces:
        begin, end = row * self._T, min((row + 1) * self._T, self._total)
        first = int(np.searchsorted(self._ends, begin, "right"))
        last = int(np.searchsorted(self._ends, end, "left"))
        ends = np.minimum(self._ends[first : last + 1], end)
        begins = np.concatenate([[begin], ends[:-1]])
        starts = np.zeros_like(begins)
        starts[0] = begin - (self._ends[first - 1] if first else 0)
        return self._documents[first : last + 1], starts, ends - begins


class _BestFit:
    """Rows as bins of capacity T, packed best-fit decreasing."""

    def __init__(self, documents: np.ndarray, transitions: np.ndarray, sequence_length: int):
        pieces = -(-transitions // sequence_length)
        owner = np.repeat(np.arange(len(documents)), pieces)
        number = np.arange(len(owner)) - (np.cumsum(pieces) - pieces)[owner]
        starts = number * sequence_length
        lengths = np.minimum(transitions[owner] - starts, sequence_length)
        bins, self._num_rows = best_fit_decreasing(lengths, sequence_length)
        order = np.argsort(bins, kind="stable")
        self._documents, self._starts, self._lengths = documents[owner[order]], starts[order], lengths[order]
        self._ends = np.cumsum(np.bincount(bins, minlength=self._num_rows))

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Pieces:
        inside = slice(int(self._ends[row - 1]) if row else 0, int(self._ends[row]))
        return self._documents[inside], self._starts[inside], self._lengths[inside]


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Pack items into bins: the largest first, each into the fullest bin that has room, a new one where none has.

    Items of one size and bins of one remaining room are handled together. Each step uses up either the items of a size
    or the bins of a room and makes at most two new kinds of bins, so there are O(capacity) steps beside the sort.

    Args:
        sizes: integers [n], each in 1 … capacity.
        capacity: room of a bin.

    Returns:
        The bin of each item, int64 [n], and the number of bins. Deterministic; ties go to the earlier item and bin.
    """
    bins = np.zeros(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    rooms: list[int] = []  # sorted; the kinds of open bins
    open_bins: dict[int, list[np.ndarray]] = {}
    num_bins = done = 0
    for size in range(capacity, 0, -1):
        items = order[done : done + counts[size]]
        done += len(items)
        while len(items):
            at = bisect.bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms.pop(at)
                candidates = np.concatenate(open_bins.pop(room))
            else:
                room = capacity
                needed = -(-len(items) // (capacity // size))
                candidates = np.arange(num_bins, num_bins + needed)
                num_bins += needed
            # A bin that took one item is now the fullest with room, if it has room: it takes all it can.
            each = room // size
            taken = candidates[: -(-len(items) // each)]
            placed = np.repeat(taken, each)[: len(items)]
            bins[items[: len(placed)]] = placed
            in_last = len(placed) - each * (len(taken) - 1)
            _keep(rooms, open_bins, room, candidates[len(taken) :])
            _keep(rooms, open_bins, room - each * size, taken[:-1])
            _keep(rooms, open_bins, room - in_last * size, taken[-1:])
            items = items[len(placed) :]
    return bins, num_bins


def _keep(rooms: list[int], open_bins: dict[int, list[np.ndarray]], room: int, bins: np.ndarray) -> None:
    if room == 0 or len(bins) == 0:
        return
    if room not in open_bins:
        bisect.insort(rooms, room)
        open_bins[room] = []
    open_bins[room].append(bins)
