"""LongRoPE's switch: a row that grows beyond the original context has all its keys computed anew, by the long factors.

What a cache holds was rotated by the short ones, and a query beyond the switch by the long ones: the two do not belong
together. transformers throws its cache away at the same place (Phi-3), for all rows of a batch by the longest; here
each row changes by its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from slmjax.inference.decoding import DecodeState
from slmjax.models.config import ModelConfig

DecodeUntil = Callable[[DecodeState, int], DecodeState]  # from a state to one with so many tokens in each row


def longest_short(config: ModelConfig) -> int | None:
    """The most tokens that a row has under the short factors; None for a model without LongRoPE."""
    lengths = [s.original_context_length for _, s in config.ropes if s is not None and s.kind == "longrope"]
    return int(min(lengths)) if lengths else None


def changes_with_length(config: ModelConfig, length: int) -> bool:
    """Whether the rotations of a text of this length are other ones than those of its beginning by itself."""
    kinds = [s for _, s in config.ropes if s is not None and s.kind in ("longrope", "dynamic")]
    return any(length > s.original_context_length for s in kinds)


def switches(config: ModelConfig, lengths: Iterable[int], max_new_tokens: int) -> list[int]:
    """Counts of drawn tokens at which a row of these prompts outgrows the short factors, in order."""
    most = longest_short(config)
    if most is None:
        return []
    return sorted({most - n + 1 for n in lengths if 1 <= most - n + 1 < max_new_tokens})


def decode_across_switches(switch_counts: Sequence[int], decode: DecodeUntil, restart: DecodeUntil) -> DecodeUntil:
    """`decode(state, count)` that stops at each of `switch_counts` to have `restart` run the rows from their beginning.

    restart(state, count): the state with the rows' `count` drawn tokens in a new cache, and one token more.
    """
    ahead = list(switch_counts)

    def decode_until(state: DecodeState, count: int) -> DecodeState:
        while ahead and ahead[0] < count:
            at = ahead.pop(0)
            state = decode(state, at)
            if np.all(state.done_B):
                return state
            state = restart(state, at)
        return decode(state, count)

    return decode_until
