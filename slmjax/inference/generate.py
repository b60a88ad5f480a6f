"""Generation: one prefill, then a compiled loop of decoding steps, over a static key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.sampling import GREEDY, Sampling, sample
from slmjax.inference.text import Continuation, encode_prompt
from slmjax.models.kv_cache import KVCache, empty_cache
from slmjax.models.transformer import Transformer, head_weights, logits_from_hidden

BUCKET = 64  # lengths are rounded up to a multiple of this, so that few programs are compiled
MAX_STOP_IDS = 8  # a fixed number, so that stopping or not is one program
NONE = -1  # in place of a token, where a row has stopped


@flax.struct.dataclass
class _Rows:
    """What decoding carries from token to token."""

    cache: KVCache | None  # None: nothing has been run
    keys_B: jax.Array  # noqa: N815 - of each row; its n-th token is drawn with n folded in
    lengths_B: jax.Array  # noqa: N815 - of the prompts
    done_B: jax.Array  # noqa: N815 - a stop token was drawn
    tokens_BN: jax.Array  # noqa: N815 - drawn so far
    count: jax.Array  # tokens drawn for each row


def _draw(model: Transformer, params, rows: _Rows, inputs, stops, sampling: Sampling) -> _Rows:
    """Run T tokens a row through the cache and draw the one that follows the last of them."""
    tokens_BT, positions_BT, segments_BT = inputs
    outputs = model.apply({"params": params}, tokens_BT, positions_BT, segments_BT, rows.cache, hidden=True)
    hidden_BTE, cache = outputs  # type: ignore[assignment]
    rows_first = model.execution.layers_apart
    head = head_weights(model.config, params, rows=rows_first)
    logits_BV = logits_from_hidden(model.config, hidden_BTE[:, -1], *head, rows=rows_first)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys_B, rows.count)
    token_B = sample(logits_BV, keys_B, sampling)
    done_B = rows.done_B | jnp.any(token_B[:, None] == stops[None, :], axis=1)
    token_B = jnp.where(done_B, NONE, token_B)
    tokens_BN = jax.lax.dynamic_update_slice(rows.tokens_BN, token_B[:, None], (0, rows.count))
    return rows.replace(cache=cache, done_B=done_B, tokens_BN=tokens_BN, count=rows.count + 1)  # type: ignore[attr-defined]


@partial(jax.jit, static_argnames=("model", "length", "sampling"))
def _prefill(model: Transformer, params, rows: _Rows, length: int, inputs, stops, sampling: Sampling) -> _Rows:
    """Run the prompts into a new cache of `length` positions and draw the first tokens."""
    run = model.execution
    cache = empty_cache(model.config, inputs[0].shape[0], length, run.dtype, layers_apart=run.layers_apart)
    cache = cache.replace(index=0)  # known to be empty: the prompts attend to themselves alone
    return _draw(model, params, rows.replace(cache=cache), inputs, stops, sampling)


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("rows",))
def _decode(model: Transformer, params, rows: _Rows, until, stops, sampling: Sampling) -> _Rows:
    """Draw until each row has `until` tokens or all have stopped."""
    segments_B1 = jnp.ones((rows.lengths_B.shape[0], 1), jnp.int32)

    def body(rows: _Rows) -> _Rows:
        last_B1 = jax.lax.dynamic_slice_in_dim(rows.tokens_BN, rows.count - 1, 1, axis=1)
        positions_B1 = (rows.lengths_B + rows.count - 1)[:, None]
        # A row that has stopped is fed token 0; nothing reads what comes of it.
        return _draw(model, params, rows, (jnp.maximum(last_B1, 0), positions_B1, segments_B1), stops, sampling)

    return jax.lax.while_loop(lambda rows: (rows.count < until) & ~jnp.all(rows.done_B), body, rows)


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

    Rows of different lengths are padded on the left; row r draws with keys of (seed, r), and what it gets does not
    depend on the rows beside it. stream: called with (row, token) as soon as each token is there; without it the host
    takes no part between the tokens.
    """
    longest = _check(lm, prompts, max_new_tokens, stop_ids)
    B = len(prompts)
    if B == 0:
        return []
    T = -(-longest // BUCKET) * BUCKET
    capacity = -(-max_new_tokens // BUCKET) * BUCKET
    inputs = np.zeros((3, B, T), np.int32)  # tokens, positions, segments
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        inputs[:, row, T - n :] = prompt, np.arange(n), np.ones(n)
    stops = np.full(MAX_STOP_IDS, NONE - 1, np.int32)
    stops[: len(stop_ids)] = stop_ids

    model, params = lm.decoding
    rows = _Rows(
        cache=None,
        keys_B=_row_keys(jax.random.key(seed), B),
        lengths_B=jnp.asarray([len(prompt) for prompt in prompts], jnp.int32),
        done_B=jnp.zeros(B, bool),
        tokens_BN=jnp.full((B, capacity), NONE, jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )
    rows = _prefill(model, params, rows, T + capacity, tuple(inputs), stops, sampling)
    if stream is None:
        rows = _decode(model, params, rows, max_new_tokens, stops, sampling)
        return [row[row != NONE].tolist() for row in np.asarray(rows.tokens_BN)]
    for n in range(1, max_new_tokens + 1):
        tokens_BN = np.array(rows.tokens_BN)  # a copy: the buffer is given to the next step
        drawn = tokens_BN[:, n - 1].tolist()
        for row, token in enumerate(drawn):
            if token != NONE:
                stream(row, token)
        if n == max_new_tokens or set(drawn) == {NONE}:
            break
        rows = _decode(model, params, rows, n + 1, stops, sampling)
    return [row[row != NONE].tolist() for row in tokens_BN]


def generate(
    lm: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_at_eos: bool = True,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """Continuations of the prompts as text, without the prompts; the end-of-text token ends a row unless told not to.

    Prompts are texts, or lists of token ids that are used as they are (see `encode_prompt` for what a text begins
    with). stream: called with each new piece of the first prompt's continuation, in whole characters; the pieces joined
    are the text that is returned.
    """
    tokenizer = lm.tokenizer
    if isinstance(prompts, str):
        raise UserError("prompts must be a list of texts: write generate(lm, [prompt]).")
    ids = [encode_prompt(tokenizer, p) if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    texts = [Continuation(tokenizer, prompt) for prompt in ids]

    def show(row: int, token: int) -> None:
        if row == 0 and stream is not None and (piece := texts[0].add(token)):
            stream(piece)

    outputs = generate_ids(
        lm,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        seed=seed,
        stop_ids=[] if tokenizer.eos_id is None or not stop_at_eos else [tokenizer.eos_id],
        stream=show if stream is not None else None,
    )
    if stream is not None and texts and (rest := texts[0].end()):
        stream(rest)
    return [text.whole(output) for text, output in zip(texts, outputs, strict=True)]


def _check(lm: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Sequence[int]) -> int:
    """The longest prompt's length; UserError for what cannot be generated from."""
    V = lm.config.vocab_size
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if len(stop_ids) > MAX_STOP_IDS:
        raise UserError(f"{len(stop_ids)} stop ids are given, at most {MAX_STOP_IDS} are taken.")
    for prompt in prompts:
        if not len(prompt):
            raise UserError("An empty prompt needs a tokenizer with a beginning- or end-of-text token to start from.")
        wrong = next((token for token in prompt if not 0 <= token < V), None)
        if wrong is not None:
            raise UserError(f"A prompt holds token id {wrong}, which is not in the model's vocabulary of {V}.")
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > lm.config.context_length:
        raise UserError(
            f"The longest prompt has {longest} tokens and {max_new_tokens} more are wanted, but the model's context is "
            f"{lm.config.context_length}: shorten the prompt or lower max_new_tokens."
        )
    return longest


@partial(jax.jit, static_argnums=1)
def _row_keys(key: jax.Array, num_rows: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_rows))
