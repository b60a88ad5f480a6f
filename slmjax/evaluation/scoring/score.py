"""Log-likelihoods of continuations, in token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from slmjax.inference.language_model import LanguageModel

Ids = Sequence[int]


class Score(NamedTuple):
    """The summed log-probability of a continuation in nats, and whether greedy decoding would have given it."""

    logprob: float
    is_greedy: bool


class NotFiniteError(Exception):
    """A log-likelihood that is NaN or infinite; `index` is its request's."""

    def __init__(self, index: int):
        super().__init__(f"The log-likelihood of request {index} is not finite.")
        self.index = index


def score(
    lm: LanguageModel,
    requests: Sequence[tuple[Ids, Ids]],
    *,
    share: bool = True,
    progress: bool = True,
    tell: Callable[[int, Score], object] | None = None,
) -> list[Score]:
    """The score of each request (context, continuation), in their order.

    Neither is empty, and together they have at most one token more than the model's context. tell: called with a
    request's index and score as soon as it is known.

    Raises:
        NotFiniteError: a log-likelihood is not finite.
    """
    del share
    scores = []
    for index, (context, continuation) in enumerate(tqdm(requests, desc="score", disable=not progress)):
        ids = np.asarray([[*context, *continuation]], np.int32)
        logits = np.asarray(lm.apply(lm.params, ids[:, :-1]), np.float64)[0, len(context) - 1 :]
        top = logits.max(-1, keepdims=True)
        log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        targets = ids[0, len(context) :]
        total = float(log_probs[np.arange(len(targets)), targets].sum())
        if not np.isfinite(total):
            raise NotFiniteError(index)
        scores.append(Score(total, bool((logits.argmax(-1) == targets).all())))
        if tell is not None:
            tell(index, scores[-1])
    return scores
