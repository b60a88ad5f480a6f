"""Scoring a text by itself, where what it begins with depends on its end or cannot be told apart by distances."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.evaluation.scoring.trie import Ids
from slmjax.inference.decoding import Decoder
from slmjax.inference.generate import bucket
from slmjax.models.transformer import apply_head
from slmjax.peft.forward import forward

HEAD_ROWS = 128  # positions whose logits are held at once


def score_whole(decoder: Decoder, arrays: Any, context: Ids, continuation: Ids) -> tuple[float, bool]:
    """A continuation's summed log-probability, and whether each of its tokens is the most likely one."""
    run = [*context, *continuation[:-1]]
    tokens_1T = np.zeros((1, bucket(len(run))), np.int32)
    tokens_1T[0, : len(run)] = run
    hidden_1TE = _hidden(decoder, arrays, tokens_1T, len(run))
    logprob, is_greedy = 0.0, True
    for begin in range(0, len(continuation), HEAD_ROWS):
        targets = continuation[begin : begin + HEAD_ROWS]
        places, wanted = np.zeros((2, HEAD_ROWS), np.int32)
        places[: len(targets)] = len(context) - 1 + begin + np.arange(len(targets))
        wanted[: len(targets)] = targets
        logprobs, greedy = map(np.asarray, _read(decoder, arrays, hidden_1TE, places, wanted))
        logprob += float(logprobs[: len(targets)].sum(dtype=np.float64))
        is_greedy &= bool(greedy[: len(targets)].all())
    return logprob, is_greedy


@partial(jax.jit, static_argnames=("decoder",))
def _hidden(decoder: Decoder, arrays: Any, tokens_1T, length) -> jax.Array:
    # Padding stays at the last token's position, so that the text becomes no longer.
    positions_1T = jnp.minimum(jnp.arange(tokens_1T.shape[1], dtype=jnp.int32), length - 1)[None]
    segments_1T = (jnp.arange(tokens_1T.shape[1]) < length).astype(jnp.int32)[None]
    hidden_1TE: jax.Array = forward(
        decoder.network, decoder.collections(arrays), tokens_1T, positions_1T, segments_1T, hidden=True
    )
    return hidden_1TE


@partial(jax.jit, static_argnames=("decoder",))
def _read(decoder: Decoder, arrays: Any, hidden_1TE, places_N, targets_N) -> tuple[jax.Array, jax.Array]:
    logits_NV = apply_head(decoder.model, decoder.collections(arrays)["params"], hidden_1TE[:, places_N])[0]
    log_probs_NV = jax.nn.log_softmax(logits_NV, axis=-1)
    logprobs_N = jnp.take_along_axis(log_probs_NV, targets_N[:, None], axis=-1)[:, 0]
    return logprobs_N, jnp.argmax(logits_NV, axis=-1) == targets_N
