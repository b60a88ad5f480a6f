"""Generation: prompts of any lengths to their continuations, as token ids and as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.inference.decoding import NONE, Decoder, DecodeState, decode, initial_state, prefill
from slmjax.inference.generation_settings import default_length, default_sampling, default_stop
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.longrope import DecodeUntil, decode_across_switches, switches
from slmjax.inference.sampling import GREEDY, Sampling, require_seed
from slmjax.inference.text import Continuation, encode_prompt

# What is streamed is told as soon as it is there; where the answer is True, its row ends with it.
TokenStream = Callable[[int, int], object]  # (row, token)
TextStream = Callable[[str], object]  # a piece, in whole characters

MAX_NEW_TOKENS = 64  # where neither the caller nor the model says it
BUCKET = 64  # lengths are rounded up to multiples of this, so that few programs are compiled
SMALL = (16, 32)  # and, below it, to these
STOPS = 8  # stop ids are filled up to a multiple of this, so that stopping or not is one program


def bucket(length: int) -> int:
    """The length that is run for a length."""
    return next((size for size in SMALL if length <= size), -(-length // BUCKET) * BUCKET)


def padded_stops(stop_ids: Sequence[int]) -> np.ndarray:
    """The stop ids as an array whose size few programs tell apart; int32, filled with what no token is."""
    size = max(1, -(-len(stop_ids) // STOPS)) * STOPS
    stops = np.full(size, NONE - 1, np.int32)
    stops[: len(stop_ids)] = stop_ids
    return stops


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments (0: padding) of prompts that end together, int32 [B, T] each."""
    T = bucket(max(map(len, prompts)))
    inputs = np.zeros((3, len(prompts), T), np.int32)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        inputs[:, row, T - n :] = prompt, np.arange(n), np.ones(n)
    return tuple(inputs)  # type: ignore[return-value]


def seen_tokens(prompts: Sequence[Sequence[int]], vocab_size: int, sampling: Sampling) -> np.ndarray | None:
    """bool [B, V], the tokens of each prompt, for a repetition penalty; None without one."""
    if sampling.repetition_penalty == 1:
        return None
    seen_BV = np.zeros((len(prompts), vocab_size), bool)
    for row, prompt in enumerate(prompts):
        seen_BV[row, list(prompt)] = True
    return seen_BV


def generate_ids(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    stream: TokenStream | None = None,
) -> list[list[int]]:
    """Continuations of the prompts' token ids, without the prompts; a stop id ends a row and is not in it.

    Rows of different lengths are padded on the left; row r draws with keys of (seed, r), and what it gets does not
    depend on the rows beside it. stream: called with (row, token) as soon as each token is there; where it returns True
    the row ends with that token. Without it the host takes no part between the tokens.
    """
    check_prompts(prompts, max_new_tokens, lm.config.vocab_size, lm.longest_context)
    if not prompts:
        return []
    decoder, variables = lm.decoding(len(prompts))
    return decode_prompts(
        decoder,
        variables,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        stop_ids=stop_ids,
        stream=stream,
    )


def decode_prompts(
    decoder: Decoder,
    arrays: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    stream: TokenStream | None = None,
) -> list[list[int]]:
    """`generate_ids` of any decoder and its arrays, those of a training state on a mesh among them.

    arrays: as `decoder.collections` takes them. With the same `decoder` (the object, or an equal one), number of
    prompts and stop ids nothing is compiled twice. Every process of a run calls this and gets all rows. The prompts
    must have tokens, and with `max_new_tokens` fit into the network's context (less its prefix).
    """
    config = decoder.model.config
    capacity = -(-max_new_tokens // BUCKET) * BUCKET
    stops = padded_stops(stop_ids)
    state = initial_state(
        jax.random.key(require_seed(seed)),
        list(map(len, prompts)),
        capacity,
        seen_tokens(prompts, config.vocab_size, sampling),
    )

    def run_prompts(state: DecodeState, texts: Sequence[Sequence[int]]) -> DecodeState:
        inputs = pad_left(texts)
        length = inputs[0].shape[1] + capacity
        return prefill(decoder, arrays, state.replace(cache=None), length, inputs, stops, sampling)  # type: ignore[attr-defined]

    def decode_until(state: DecodeState, count: int) -> DecodeState:
        return decode(decoder, arrays, state, count, stops, sampling)

    def restart(state: DecodeState, count: int) -> DecodeState:
        drawn_BN = np.maximum(np.asarray(state.tokens_BN), 0)[:, :count].tolist()
        return run_prompts(state, [[*prompt, *drawn] for prompt, drawn in zip(prompts, drawn_BN, strict=True)])

    draw = decode_across_switches(switches(config, map(len, prompts), max_new_tokens), decode_until, restart)
    state = run_prompts(state, prompts)
    state = draw(state, max_new_tokens) if stream is None else decode_streaming(state, max_new_tokens, draw, stream)
    return [row[row != NONE].tolist() for row in np.asarray(state.tokens_BN)]


def decode_streaming(
    state: DecodeState, max_new_tokens: int, decode_until: DecodeUntil, stream: TokenStream
) -> DecodeState:
    """A state after prefill, decoded token by token; see `generate_ids` for what `stream` is told and may answer."""
    for n in range(1, max_new_tokens + 1):
        # A copy: the buffer is given to the next step.
        drawn = np.array(state.tokens_BN[:, n - 1])
        ended_B = np.array([token != NONE and stream(row, token) is True for row, token in enumerate(drawn.tolist())])
        state = state.replace(done_B=state.done_B | ended_B)  # type: ignore[attr-defined]
        if n == max_new_tokens or bool(np.all(ended_B | (drawn == NONE))):
            break
        state = decode_until(state, n + 1)
    return state


def generate(
    lm: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    stop_at_eos: bool = True,
    special: bool = False,
    stream: TextStream | None = None,
) -> list[str]:
    """Continuations of the prompts as text, without the prompts.

    A row ends before the first of the `stop` strings, which may be or have special tokens (`<|im_end|>`), and at the
    model's stop ids (else the tokenizer's end-of-text token) unless `stop_at_eos` is False. Prompts are texts, or lists
    of token ids that are used as they are (see `encode_prompt` for what a text begins with). special: whether the
    strings of special tokens in the prompts are these tokens, as templates and fill-in-the-middle need it; by default
    they are text, as outside text should be. stream: called with each new piece of the first prompt's continuation, in
    whole characters; the pieces joined are the text that is returned, and where it returns True that row ends. How
    tokens are drawn is said by `sampling`, or by its settings one by one. What is not given is as the model's
    generation_config.json has it (`do_sample` and its settings, `stop_strings`, `max_new_tokens`), else greedy, without
    stop strings, and 64 tokens; temperature=0 is greedy in any case.
    """
    if isinstance(prompts, str):
        raise UserError("The prompts must be a list of texts: write generate(lm, [prompt]).")
    if isinstance(stop, str) or "" in stop:
        raise UserError("The stop strings must be a list of texts, none of them empty.")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    settings["repetition_penalty"] = repetition_penalty
    drawn_by = default_sampling(lm.generation, sampling, **settings)
    stop = stop or default_stop(lm.generation)
    tokenizer = lm.require_tokenizer()
    ids = [encode_prompt(tokenizer, p, special=special) if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    texts = [Continuation(tokenizer, prompt, stop) for prompt in ids]
    if max_new_tokens is None:
        room = lm.longest_context - max(map(len, ids), default=0)
        max_new_tokens = default_length(lm.generation, MAX_NEW_TOKENS, room)

    def show(row: int, token: int) -> bool:
        piece = texts[row].add(token)
        told_to_end = row == 0 and stream is not None and bool(piece) and stream(piece) is True
        return told_to_end or texts[row].stopped

    outputs = generate_ids(
        lm,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=drawn_by,
        seed=seed,
        stop_ids=stop_ids_of(lm) if stop_at_eos else (),
        stream=show if stream is not None or stop else None,
    )
    if stream is not None and texts and (rest := texts[0].end()):
        stream(rest)
    return [text.whole(output) for text, output in zip(texts, outputs, strict=True)]


def stop_ids_of(lm: LanguageModel) -> tuple[int, ...]:
    """Ids at which the model's generation ends: its own, else the tokenizer's end-of-text token, if it has one."""
    eos = None if lm.tokenizer is None else lm.tokenizer.eos_id
    return lm.stop_ids or (() if eos is None else (eos,))


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int, context: int) -> None:
    """UserError for what cannot be generated from."""
    if max_new_tokens < 1:
        raise UserError(f"The limit max_new_tokens={max_new_tokens} must be at least 1.")
    for prompt in prompts:
        if not len(prompt):
            raise UserError("An empty prompt needs a tokenizer with a beginning- or end-of-text token to start from.")
        wrong = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(f"A prompt holds token id {wrong}, which is not in the model's vocabulary of {vocab_size}.")
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > context:
        raise UserError(
            f"The longest prompt has {longest} tokens and {max_new_tokens} more are wanted, but the model's context is "
            f"{context}: shorten the prompt or lower max_new_tokens."
        )
