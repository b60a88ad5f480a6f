"""A conversation with a model, by its own template; what was run of the history is not run again."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.inference.decoding import NONE, DecodeState, decode, extend, initial_state, new_cache
from slmjax.inference.generate import (
    BUCKET,
    TextStream,
    TokenStream,
    bucket,
    decode_streaming,
    padded_stops,
    seen_tokens,
    stop_ids_of,
)
from slmjax.inference.generation_settings import default_length, default_sampling, default_stop
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.longrope import decode_across_switches, longest_short, switches
from slmjax.inference.sampling import Sampling, require_seed
from slmjax.inference.text import Continuation
from slmjax.models.kv_cache import KVCache
from slmjax.peft.prefix_cache import prefix_length
from slmjax.tokenization.chat_template import ChatTemplate
from slmjax.tokenization.chat_tokens import encode_messages

CHUNKS = (16, 64, 256)  # prompts are run in pieces of these lengths: three programs for all of them


class Conversation:
    """Messages so far, and the keys and values of their tokens.

    context: tokens that the conversation may come to, at most the model's; its cache is allocated at the first answer.
    How tokens are drawn is said by `sampling`, or by its settings one by one. What is not given is as the model's
    generation_config.json has it, else greedy, without stop strings, and 512 tokens an answer.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        context: int = 4096,
        seed: int = 0,
        stop: Sequence[str] = (),
    ):
        max_new_tokens = default_length(lm.generation, 512, context) if max_new_tokens is None else max_new_tokens
        if max_new_tokens < 1 or context < 1:
            raise UserError(f"The limits max_new_tokens={max_new_tokens} and context={context} must be at least 1.")
        self._lm, self._tokenizer = lm, lm.require_tokenizer()
        self._template = ChatTemplate.of(self._tokenizer)
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        settings["repetition_penalty"] = repetition_penalty
        self._sampling = default_sampling(lm.generation, sampling, **settings)
        self._max_new_tokens, self._stop = max_new_tokens, stop or default_stop(lm.generation)
        self._context, self._key = min(context, lm.longest_context), jax.random.key(require_seed(seed))
        self._cache: KVCache | None = None
        self._held: list[int] = []  # the tokens whose keys and values the cache holds, from its first position
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all but the system's message."""
        self.messages = list(self._beginning)

    def answer(self, text: str, stream: TextStream | None = None) -> str:
        """The model's answer to the user's next message; both join the history.

        stream: called with each new piece of the answer, in whole characters; where it returns True the answer ends.

        Raises:
            UserError: the template refuses the message, or the conversation has filled its context.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = encode_messages(self._tokenizer, self._template, asked, add_generation_prompt=True)
        room = self._context - len(ids)
        if room < 1:
            raise UserError(
                f"The conversation has {len(ids)} tokens and its context is {self._context}: begin anew or shorten it."
            )
        answer = Continuation(self._tokenizer, ids, self._stop)

        def show(_: int, token: int) -> bool:
            piece = answer.add(token)
            told_to_end = bool(piece) and stream is not None and stream(piece) is True
            return told_to_end or answer.stopped

        tokens = self._generate(ids, min(self._max_new_tokens, room), show)
        if (rest := answer.end()) and stream is not None:
            stream(rest)
        self.messages = [*asked, {"role": "assistant", "content": answer.whole(tokens)}]
        return self.messages[-1]["content"]

    def _generate(self, ids: list[int], max_new_tokens: int, show: TokenStream) -> list[int]:
        decoder, variables = self._lm.decoding(1)
        stops = padded_stops(stop_ids_of(self._lm))
        state, self._cache = self._prefilled(ids, stops), None  # the cache's buffers are given to what runs next

        def decode_until(state: DecodeState, count: int) -> DecodeState:
            return decode(decoder, variables, state, count, stops, self._sampling)

        def restart(state: DecodeState, count: int) -> DecodeState:
            return self._run(state, [*ids, *np.asarray(state.tokens_BN)[0, :count].tolist()], 0, stops)

        counts = switches(self._lm.config, [len(ids)], max_new_tokens)
        draw = decode_across_switches(counts, decode_until, restart)
        state = decode_streaming(state, max_new_tokens, draw, show)
        drawn = np.asarray(state.tokens_BN)[0]
        drawn_ids = drawn[drawn != NONE].tolist()
        self._cache = state.cache
        self._held = (ids + drawn_ids)[: len(ids) + int(state.count) - 1]  # the last token drawn was not run
        return drawn_ids

    def _prefilled(self, ids: list[int], stops: np.ndarray) -> DecodeState:
        """One row of these tokens, of which those that the cache holds are not run."""
        if self._cache is None:
            decoder, variables = self._lm.decoding(1)
            length = -(-self._context // BUCKET) * BUCKET + CHUNKS[-1]  # room for the padding of the last piece
            self._cache = new_cache(decoder, variables, 1, length)
            self._held = []
        at = next((i for i, (a, b) in enumerate(zip(ids, self._held, strict=False)) if a != b), len(self._held))
        at = min(at, len(ids) - 1)  # the last is always run: the next token is drawn from it
        short = longest_short(self._lm.config)
        chunks = pieces(ids[at:])
        if short is not None and len(ids) > short and min(at, len(self._held) - 1) < short:
            at, chunks = 0, [ids]  # in one piece, so that its beginning too is rotated by the long factors
        elif short is not None and len(ids) <= short < len(self._held):
            at, chunks = 0, pieces(ids)
        key = jax.random.fold_in(self._key, len(self.messages))
        capacity = -(-self._max_new_tokens // BUCKET) * BUCKET
        seen_BV = seen_tokens([ids], self._lm.config.vocab_size, self._sampling)
        cache: KVCache | None = self._cache
        for piece in chunks:
            # What is drawn after all but the last piece is of no interest: each begins with nothing drawn.
            state = initial_state(key, [len(ids)], capacity, seen_BV).replace(cache=cache)  # type: ignore[attr-defined]
            state, at = self._run(state, piece, at, stops), at + len(piece)
            cache = state.cache
        return state

    def _run(self, state: DecodeState, piece: Sequence[int], at: int, stops: np.ndarray) -> DecodeState:
        """The state's cache with these tokens from the text's position `at`; the next is drawn."""
        decoder, variables = self._lm.decoding(1)
        size = next((size for size in CHUNKS if len(piece) <= size), bucket(len(piece)))
        tokens_1T = np.zeros((1, size), np.int32)
        tokens_1T[0, : len(piece)] = piece
        start = np.int32(at + prefix_length(self._lm.peft))
        state = state.replace(cache=state.cache.replace(index=start))  # type: ignore[attr-defined, union-attr]
        return extend(decoder, variables, state, tokens_1T, len(piece), stops, self._sampling)


def pieces(ids: Sequence[int]) -> list[Sequence[int]]:
    """The tokens cut into the largest chunks, and what is left."""
    return [ids[start : start + CHUNKS[-1]] for start in range(0, len(ids), CHUNKS[-1])]
