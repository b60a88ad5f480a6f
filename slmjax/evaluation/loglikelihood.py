"""Log-likelihoods of continuations, as lm-evaluation-harness asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slmjax.errors import UserError
from slmjax.inference.generate import bucket
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.text import encode_prompt
from slmjax.models.transformer import head_weights, logits_from_hidden
from slmjax.peft.forward import Network, forward

ROWS = 4  # of a batch: prompts are long, and longer ones run no faster side by side on a CPU


def loglikelihoods(
    lm: LanguageModel, requests: Sequence[tuple[str, Sequence[str]]], *, progress: bool = True
) -> list[list[float]]:
    """Summed log-probabilities of each request's continuations after its prompt, in nats.

    A prompt is encoded alone and with the continuation, whose tokens are those that come on top (as in
    lm-evaluation-harness); a prompt too long for the context loses its beginning. Continuations of one token share a
    run of their prompt.
    """
    tokenizer = lm.require_tokenizer()
    wanted: dict[tuple[int, ...], list[tuple[int, int, list[int]]]] = {}  # what is run: what is asked of it
    for r, (prompt, continuations) in enumerate(requests):
        start = encode_prompt(tokenizer, prompt, special=False)
        for c, continuation in enumerate(continuations):
            tail = encode_prompt(tokenizer, prompt + continuation, special=False)[len(start) :]
            if not tail:
                raise UserError(f"The continuation {continuation!r} has no tokens of its own after its prompt.")
            run = (start + tail)[:-1][-lm.context_length :]
            wanted.setdefault(tuple(run), []).append((r, c, tail))
    scores = [[0.0] * len(continuations) for _, continuations in requests]
    rows = sorted(wanted, key=len, reverse=True)  # the longest first: memory runs out at once or never
    most = max((len(tail) for asked in wanted.values() for _, _, tail in asked), default=1)
    with tqdm(total=len(rows), desc="score", unit=" prompts", disable=not progress) as bar:
        for first in range(0, len(rows), ROWS):
            part = rows[first : first + ROWS]
            tokens_BT = np.zeros((ROWS, min(bucket(len(part[0])), lm.context_length)), np.int32)
            ends_B = np.ones(ROWS, np.int32)
            for b, row in enumerate(part):
                tokens_BT[b, : len(row)], ends_B[b] = row, len(row)
            log_probs_BNV = np.asarray(_last(Network(lm.model, lm.options), most, lm.variables, tokens_BT, ends_B))
            for b, row in enumerate(part):
                for r, c, tail in wanted[row]:
                    places = range(most - len(tail), most)
                    scores[r][c] = float(sum(log_probs_BNV[b, n, id] for n, id in zip(places, tail, strict=True)))
            bar.update(len(part))
    return scores


@partial(jax.jit, static_argnums=(0, 1))
def _last(network: Network, count: int, variables, tokens_BT, ends_B) -> jax.Array:
    """float32 log-probabilities [B, count, V] of what follows the last `count` tokens before each row's end."""
    model = network.model
    hidden_BTE = forward(network, variables, tokens_BT, hidden=True)
    places_BN = jnp.maximum(ends_B[:, None] - count + jnp.arange(count), 0)
    hidden_BNE = jnp.take_along_axis(hidden_BTE, places_BN[..., None], axis=1)
    return jax.nn.log_softmax(
        logits_from_hidden(model.config, hidden_BNE, *head_weights(model.config, variables["params"]))
    )
