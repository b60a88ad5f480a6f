"""Generation: one prefill, then one compiled step a token, over a static key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.sampling import GREEDY, Sampling, sample
from slmjax.models.kv_cache import KVCache, empty_cache
from slmjax.models.transformer import Transformer, head_weights, logits_from_hidden

BUCKET = 64  # lengths are rounded up to a multiple of this, so that few programs are compiled


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=(2,))
def _forward(model: Transformer, params, cache: KVCache, inputs, sampling: Sampling):
    """Run T tokens a row through the cache; sample what follows the last one."""
    tokens_BT, positions_BT, segments_BT, keys_B = inputs
    outputs = model.apply({"params": params}, tokens_BT, positions_BT, segments_BT, cache, hidden=True)
    hidden_BTE, cache = outputs  # type: ignore[assignment]
    kernel_EV, bias_V = head_weights(model.config, params)
    logits_BV = logits_from_hidden(model.config, hidden_BTE[:, -1], kernel_EV, bias_V)
    return sample(logits_BV, keys_B, sampling), cache


def generate_ids(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    stream: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continuations of the prompts' token ids, without the prompts; a stop id ends a row and is not in it.

    Rows of different lengths are padded on the left; what a row gets does not depend on the rows beside it.
    stream: called with (row, token) as soon as each token is there.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    B, longest = len(prompts), max(map(len, prompts), default=0)
    if B == 0:
        return []
    for prompt in prompts:
        if not prompt:
            raise UserError("An empty prompt needs a tokenizer with a beginning- or end-of-text token to start from.")
        if min(prompt) < 0 or max(prompt) >= lm.config.vocab_size:
            raise UserError(f"A prompt holds token id {max(prompt)}, beyond the vocabulary of {lm.config.vocab_size}.")
    if longest + max_new_tokens > lm.config.context_length:
        raise UserError(
            f"The longest prompt has {longest} tokens and {max_new_tokens} more are wanted, but the model's context is "
            f"{lm.config.context_length}: shorten the prompt or lower --max-new-tokens."
        )
    T = -(-longest // BUCKET) * BUCKET
    length = -(-(T + max_new_tokens) // BUCKET) * BUCKET
    tokens = np.zeros((B, T), np.int32)
    positions = np.zeros((B, T), np.int32)
    segments = np.zeros((B, T), np.int32)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        tokens[row, T - n :], positions[row, T - n :], segments[row, T - n :] = prompt, np.arange(n), 1
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    row_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(B))
    fold = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))

    cache = empty_cache(lm.config, B, length, lm.model.execution.dtype)
    next_B, cache = _forward(lm.model, lm.params, cache, (tokens, positions, segments, fold(row_keys, 0)), sampling)
    outputs: list[list[int]] = [[] for _ in prompts]
    running = [True] * B
    stops = set(stop_ids)
    for i in range(max_new_tokens):
        current_B = next_B
        if i + 1 < max_new_tokens:  # dispatched before the host looks at the token: the device does not wait
            inputs = (current_B[:, None], (lengths + i)[:, None], np.ones((B, 1), np.int32), fold(row_keys, i + 1))
            next_B, cache = _forward(lm.model, lm.params, cache, inputs, sampling)
        for row, token in enumerate(np.asarray(current_B).tolist()):
            if running[row] and token in stops:
                running[row] = False
            if running[row]:
                outputs[row].append(token)
                if stream is not None:
                    stream(row, token)
        if not any(running):
            break
    return outputs


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """Continuations of the prompts as text, without the prompts; the end-of-text token ends a row.

    stream: called with each new piece of the first prompt's text, in whole characters.
    """
    tokenizer = lm.tokenizer
    if isinstance(prompts, str):
        raise UserError("prompts must be a list of texts: write generate(lm, [prompt]).")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    ids = [tokenizer.encode(prompt) or ([] if start is None else [start]) for prompt in prompts]
    seen: list[int] = []
    shown = 0

    def show(row: int, token: int) -> None:
        nonlocal shown
        if row == 0 and stream is not None:
            seen.append(token)
            text = tokenizer.decode(seen)
            if not text.endswith("\ufffd"):  # a character may span tokens
                stream(text[shown:])
                shown = len(text)

    outputs = generate_ids(
        lm,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        seed=seed,
        stop_ids=[] if tokenizer.eos_id is None else [tokenizer.eos_id],
        stream=show if stream is not None else None,
    )
    return [tokenizer.decode(output) for output in outputs]
