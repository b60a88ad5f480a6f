"""Mixtures of sources, and how often a run passes over each of them."""

import bisect
import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from slmjax.data.config import RowLayout
from slmjax.data.packing import Documents, PackedRows


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources to train on, interleaved row by row.

    Attributes:
        stores: the documents of each source, by name. Their order is part of the order of the rows.
        weights: the share of each source in the rows, relative to the others'; 1 where a name is missing.
    """

    stores: Mapping[str, Documents]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def proportions(self) -> list[int]:
        """The weights of the stores as grain's mixing rounds them: in hundredths of the smallest, cut off."""
        weights = [self.weights.get(name, 1.0) for name in self.stores]
        scale = 100 / min(weights, default=1.0)
        return [int(weight * scale) for weight in weights]

    def rows_drawn(self, num_rows: int) -> dict[str, int]:
        """How many of the first `num_rows` rows of the mixture come from each source.

        grain gives each source in turn its share of the rows that the sources before it leave, rounded up.
        """
        drawn, left, rest = {}, num_rows, sum(self.proportions)
        for name, proportion in zip(self.stores, self.proportions, strict=True):
            others = left * (rest - proportion) // rest
            drawn[name], left, rest = left - others, others, rest - proportion
        return drawn


class EpochSize(NamedTuple):
    """Rows that hold a source once, and the tokens (targets) in them."""

    rows: int
    tokens: int


def epoch_sizes(mixture: Mixture, layout: RowLayout) -> dict[str, EpochSize]:
    """The size of one pass over each source."""
    sizes = {}
    for name, store in mixture.stores.items():
        rows = PackedRows(store, layout.sequence_length, layout.packing, seed=None)  # no order changes their number
        sizes[name] = EpochSize(len(rows), rows.num_transitions)
    return sizes


def interleaved_rows(num_rows: int, share: float) -> int:
    """How many of the first `num_rows` rows `Interleaved` puts in between: floor(num_rows * share), counted exactly."""
    return math.floor(num_rows * Fraction(share).limit_denominator(10**6))


def rows_for_epochs(mixture: Mixture, layout: RowLayout, epochs: float, *, interleaved_share: float = 0.0) -> int:
    """The smallest number of rows of training in which every source has had at least `epochs` passes.

    Where the weights are in proportion to the sources' rows (or there is one source), all of them have had just as
    many. Otherwise the source with the smallest weight for its size decides, and the others are repeated more often;
    `repeats` tells how often.

    Args:
        epochs: above 0.
        interleaved_share: of all rows, the share of those that `Interleaved` puts in between; they count on top.
    """
    wanted = {name: math.ceil(epochs * size.rows - 1e-9) for name, size in epoch_sizes(mixture, layout).items()}

    def suffice(num_rows: int) -> bool:
        drawn = mixture.rows_drawn(num_rows - interleaved_rows(num_rows, interleaved_share))
        return all(drawn[name] >= wanted[name] for name in wanted)

    most = 1
    while not suffice(most):
        most *= 2
    return bisect.bisect_left(range(most + 1), True, key=suffice)


def repeats(mixture: Mixture, layout: RowLayout, num_rows: int, *, interleaved_share: float = 0.0) -> dict[str, float]:
    """How many passes over each source are in the first `num_rows` rows of training: rows drawn from it / its rows."""
    drawn = mixture.rows_drawn(num_rows - interleaved_rows(num_rows, interleaved_share))
    return {name: drawn[name] / max(1, size.rows) for name, size in epoch_sizes(mixture, layout).items()}
