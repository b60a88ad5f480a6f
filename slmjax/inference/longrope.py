"""LongRoPE's switch: a row that grows beyond the original context has all its keys computed anew, by the long factors.

What a cache holds was rotated by the short ones, and a query beyond the switch by the long ones: the two do not belong
together. transformers throws its cache away at the same place (Phi-3), for all rows of a batch by the longest; here
each row changes by its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from slmjax.inference.decoding import Rows
from slmjax.models.config import ModelConfig


def longest_short(config: ModelConfig) -> int | None:
    """The most tokens that a row has under the short factors; None for a model without LongRoPE."""
    lengths = [s.original_context_length for _, s in config.ropes if s is not None and s.kind == "longrope"]
    return int(min(lengths)) if lengths else None


def switches(config: ModelConfig, lengths: Iterable[int], max_new_tokens: int) -> list[int]:
    """How many tokens are drawn when a row of these prompts outgrows the short factors, in order."""
    most = longest_short(config)
    if most is None:
        return []
    return sorted({most - n + 1 for n in lengths if 1 <= most - n + 1 < max_new_tokens})


def across(
    counts: Sequence[int], until: Callable[[Rows, int], Rows], again: Callable[[Rows, int], Rows]
) -> Callable[[Rows, int], Rows]:
    """`until(rows, count)` which stops at each of `counts` to have `again` run the rows from their beginning.

    again(rows, count): rows whose `count` drawn tokens are in a new cache, and with one token more.
    """
    ahead = list(counts)

    def until_across(rows: Rows, count: int) -> Rows:
        while ahead and ahead[0] < count:
            at = ahead.pop(0)
            rows = until(rows, at)
            if np.all(rows.done_B):
                return rows
            rows = again(rows, at)
        return until(rows, count)

    return until_across
