"""Bits per byte of held-out text under a model. `baselines.py` has what makes the number mean something."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slmjax.data.conversations.examples import ExampleStore
from slmjax.data.packing import PackedRows, Row, empty_row, stack_rows
from slmjax.errors import UserError
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.text import starts_with_bos
from slmjax.models.transformer import head_weights
from slmjax.objectives.chunks import logits_bytes_for
from slmjax.objectives.cross_entropy import linear_cross_entropy
from slmjax.objectives.loss import Loss
from slmjax.objectives.summing import bits_per_byte, sum_losses
from slmjax.peft.forward import Network, forward

ROWS = 8  # of a batch


def evaluate_text(
    lm: LanguageModel, texts: Sequence[str], *, sequence_length: int = 0, progress: bool = True
) -> dict[str, float]:
    """`nll_per_token` (nats), `bits_per_byte`, `tokens` and `bytes` (UTF-8) of texts, every token counted once.

    Each text is read from its start in windows of `sequence_length` (0: the model's context, at most 1024; never more
    than the longest text needs), which are packed into rows. A window starts where the one before it ended, so the
    tokens at its start have less context: an over-estimate that a longer window lessens.

    A text's first token is predicted from the tokenizer's bos token where the model was trained with one. Elsewhere
    the model has no prediction for it, and it is charged log2 V bits, as under a uniform distribution: never to the
    model's advantage.
    """
    if not any(texts):
        raise UserError("There is no text to evaluate: every text is empty.")
    context = lm.context_length
    if not 0 <= sequence_length <= context:
        raise UserError(f"The sequence length {sequence_length} must be at most the model's context, {context}.")
    tokenizer = lm.require_tokenizer()
    bos = tokenizer.bos_id
    start = [bos] if bos is not None and starts_with_bos(tokenizer) else []
    encoded = [np.asarray([*start, *ids], np.int32) for ids in tokenizer.encode_batch(list(texts)) if ids]
    documents = ExampleStore("The text", [(ids, np.ones(len(ids), bool)) for ids in encoded])
    largest = max(int(ids.max()) for ids in encoded)
    if largest >= lm.config.vocab_size:
        raise UserError(f"The tokenizer gives token id {largest}, the model's vocabulary is {lm.config.vocab_size}.")
    longest = -(-int(documents.lengths.max()) // 64) * 64
    T = min(sequence_length or min(context, 1024), longest)
    rows = PackedRows(documents, T, "best_fit", seed=None)

    with tqdm(total=rows.num_transitions, desc="evaluate", unit="tok", unit_scale=True, disable=not progress) as bar:

        def batches() -> Iterator[Row]:
            for first in range(0, len(rows), ROWS):
                batch = stack_rows(rows[i] if i < len(rows) else empty_row(T) for i in range(first, first + ROWS))
                yield batch
                bar.update(int(batch["loss_weights"].sum()))

        total = sum_losses(partial(_loss, Network(lm.model, lm.options), lm.variables), batches())
    nats, tokens = float(total.sum), float(total.weight)
    if not start:
        nats += len(documents.lengths) * math.log(lm.config.vocab_size)
        tokens += len(documents.lengths)
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "nll_per_token": nats / tokens,
        "bits_per_byte": bits_per_byte(nats, float(num_bytes)).over(None),
        "tokens": int(tokens),
        "bytes": num_bytes,
    }


@partial(jax.jit, static_argnums=0)
def _loss(network: Network, variables, batch) -> Loss:
    """Summed negative log-likelihood of a batch's targets, in nats, and their number."""
    inputs = (batch["inputs"], batch["positions"], batch["segments"])
    model = network.model
    hidden = forward(network, variables, *inputs, hidden=True)
    kernel, bias = head_weights(model.config, variables["params"])
    logits_bytes = logits_bytes_for(jax.default_backend(), model.config)
    targets, weights = batch["targets"], batch["loss_weights"]
    head = (hidden, kernel, bias, targets, weights)
    sums = linear_cross_entropy(*head, config=model.config, logits_bytes=logits_bytes)
    return Loss(sums.nll, jnp.sum(weights), {})
