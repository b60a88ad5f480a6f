"""Texts to token ids as lm-evaluation-harness's own `hf` class encodes them.

Special tokens' strings in a text are these tokens, and what the tokenizer puts around a text (its bos token, as a rule)
is put there unless the text begins with it already. Source: lm-eval 0.4.13, api/model.py and models/huggingface.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from slmjax.inference.text import starts_with_bos
from slmjax.tokenization.tokenizer import Tokenizer

Pair = tuple[list[int], list[int]]  # context, continuation
_CHUNK = 1024  # texts encoded at once: the library's own record of a token takes far more than its id
_TAIL = 64  # characters at the end of a context that a continuation is encoded with, at least


class Encoder:
    """The harness's view of a tokenizer.

    Attributes:
        prefix: the token that stands before a text without context: bos, else eos, else None.
        before, after: token ids that the tokenizer puts around a text.

    Args:
        add_bos: whether texts get what is put around them; None: as the tokenizer does.
        prefix: another token than the default.
    """

    def __init__(self, tokenizer: Tokenizer, *, add_bos: bool | None = None, prefix: int | None = None):
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        self._tokenizer, self._adds = tokenizer, add_bos is not False
        self.prefix = next((id for id in (prefix, bos, eos) if id is not None), None)
        self.before = list(tokenizer.begin_ids or ([bos] if starts_with_bos(tokenizer) and bos is not None else []))
        self.after = tokenizer.added_around()[1]
        if add_bos and not self.before and bos is not None:
            self.before = [bos]
        self._prefix_text = None if self.prefix is None else tokenizer.decode([self.prefix], keep_special=True)
        self._bos_text = None if bos is None else tokenizer.id_to_token(bos)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text whose log-likelihood is asked for."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on all cores."""
        return [self._surrounded(text, ids, self._prefix_text) for text, ids in self._bare(texts)]

    def encode_bare(self, text: str) -> list[int]:
        """Token ids of a text with nothing put around it."""
        return self._tokenizer.encode(text, allow_special=True)

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts to be continued; an empty one is the prefix."""
        prompts = [self._surrounded(text, ids, self._bos_text) for text, ids in self._bare(texts)]
        return [ids or ([] if self.prefix is None else [self.prefix]) for ids in prompts]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Pair]:
        """Token ids of contexts and continuations; equal contexts are encoded once and share one list.

        White space at the end of a context is moved to its continuation. A pair is encoded as one text, and what comes
        after as many tokens as the context alone has is the continuation. A continuation without a context stands after
        the prefix, or after its own first token where that is the prefix.
        """
        moved = [_move_space(context, continuation) for context, continuation in pairs]
        times = Counter(context for context, _ in moved if context)
        contexts = dict(zip(times, self.encode_many(list(times)), strict=True))
        tails = self._tails(contexts, times)
        for start in range(0, len(moved), _CHUNK):
            chunk = moved[start : start + _CHUNK]
            ends = [tails[context][0] + continuation for context, continuation in chunk if context in tails]
            ended = (ids for _, ids in self._bare(ends))
            rest = [context + tail for context, tail in chunk if context and context not in tails]
            wholes = iter(self.encode_many(rest))
            for context, continuation in chunk:
                if not context:
                    yield self._without_context(continuation)
                elif context in tails:
                    yield contexts[context], next(ended)[tails[context][1] :]
                else:
                    yield contexts[context], next(wholes)[len(contexts[context]) :]

    def _tails(self, contexts: dict[str, list[int]], times: Counter[str]) -> dict[str, tuple[str, int]]:
        """The last lines of the long contexts that several continuations follow, and how many tokens these lines have.

        A continuation is encoded with these lines alone: shots in front of them are not encoded again for each choice.
        Only where the lines have the same tokens alone as at the end of their context, so that the two are encoded
        apart; which no tokenizer does that puts a space before a text.
        """
        cuts = {context: context.rfind("\n", 0, -_TAIL) + 1 for context in contexts if times[context] > 1}
        lines = {context: context[cut:] for context, cut in cuts.items() if cut > _TAIL and not self.after}
        encoded = zip(lines.items(), self._bare(list(lines.values())), strict=True)
        return {
            context: (text, len(ids))
            for (context, text), (_, ids) in encoded
            if len(ids) < len(contexts[context]) and contexts[context][-len(ids) :] == ids
        }

    def _without_context(self, continuation: str) -> Pair:
        ids = self.encode_bare(continuation)
        if self.prefix is None or ids[:1] == [self.prefix]:
            return ids[:1], ids[1:]
        return [self.prefix], ids

    def _bare(self, texts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            yield from zip(chunk, self._tokenizer.encode_batch(chunk, allow_special=True), strict=True)

    def _surrounded(self, text: str, ids: list[int], beginning: str | None) -> list[int]:
        """The ids with what is put around them, unless the text has its beginning already."""
        if not self._adds or (beginning is not None and text.startswith(beginning)):
            return ids
        return [*self.before, *ids, *self.after] if self.before or self.after else ids


def _move_space(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
