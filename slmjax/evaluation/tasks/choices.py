"""Log-likelihoods of texts after a prompt, encoded as lm-evaluation-harness encodes them."""

from __future__ import annotations

from collections.abc import Sequence

from slmjax.errors import UserError
from slmjax.evaluation.scoring.score import NotFiniteError, score
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.text import encode_prompt


def loglikelihoods(
    lm: LanguageModel, requests: Sequence[tuple[str, Sequence[str]]], *, progress: bool = True
) -> list[list[float]]:
    """Summed log-probabilities of each request's continuations after its prompt, in nats.

    A prompt is encoded alone and with the continuation, whose tokens are those that come on top; a prompt too long for
    the context loses its beginning.

    Raises:
        UserError: a continuation without tokens of its own, or a log-likelihood that is not finite.
    """
    tokenizer = lm.require_tokenizer()
    pairs, owners = [], []
    for r, (prompt, continuations) in enumerate(requests):
        start = encode_prompt(tokenizer, prompt, special=False)
        for continuation in continuations:
            tail = encode_prompt(tokenizer, prompt + continuation, special=False)[len(start) :]
            if not tail:
                raise UserError(f"The continuation {continuation!r} has no tokens of its own after its prompt.")
            room = lm.context_length + 1 - len(tail)
            if room < 1:
                raise UserError(f"The continuation {continuation[:60]!r} is longer than the model's context.")
            pairs.append((start[-room:], tail))
            owners.append(r)
    scores: list[list[float]] = [[] for _ in requests]
    try:
        found = score(lm, pairs, progress=progress)
    except NotFiniteError as error:
        prompt = requests[owners[error.index]][0]
        raise UserError(
            f"The log-likelihood of an answer to {prompt[:60]!r} is not finite: nothing can be said."
        ) from error
    for owner, one in zip(owners, found, strict=True):
        scores[owner].append(one.logprob)
    return scores
