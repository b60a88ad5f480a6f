"""Conversations to token ids, and which of them the assistant wrote.

Special tokens are what the template writes. A special token's string inside a message stays text, whoever wrote the
message: it can neither end a turn nor begin one.
"""

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.tokenization.assistant_spans import Span
from slmjax.tokenization.chat_template import ChatTemplate, Message
from slmjax.tokenization.tokenizer import Tokenizer

# Put around a special token's string that stands in a message: then it is text. No text can hold them.
_OPEN, _CLOSE = (f"{sign}{secrets.token_hex(8)}" for sign in ("\ue010", "\ue011"))


def encode_messages(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation; with `add_generation_prompt`, up to where the assistant's answer begins.

    Raises:
        UserError: as `ChatTemplate.render`.
    """
    special = tokenizer.special_tokens()
    marked, marked_tools = _with_marks(list(messages), special), _with_marks(tools, special)
    text = template.render(marked, add_generation_prompt=add_generation_prompt, tools=marked_tools, variables=variables)
    return [id for piece in _pieces(text, special) for id in _encode(tokenizer, piece)]


def encode_conversation(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    last: int | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[list[int], np.ndarray]:
    """Token ids of a whole conversation, and bool [tokens]: what its assistant wrote; float32 with `weights`.

    Args:
        last: only the last so many spans of the assistant.
        weights: of each of the assistant's messages, what its tokens get instead of True.

    Raises:
        UserError: as `ChatTemplate.render_with_spans`; or its spans are not one for each message, which has a weight.
    """
    special = tokenizer.special_tokens()
    marked, marked_tools = _with_marks(list(messages), special), _with_marks(tools, special)
    text, spans = template.render_with_spans(marked, tools=marked_tools)
    ids, offsets = _encode_with_offsets(tokenizer, _pieces(text, special))
    if weights is not None and len(weights) != len(spans):
        raise UserError(
            f"The chat template marks {len(spans)} stretches of text for the {len(weights)} messages of the assistant, "
            "so their weights cannot be applied: put one {% generation %} block around each message."
        )
    if last is not None:
        spans = spans[len(spans) - last :]
    marks = [found.start() for found in re.finditer(f"{_OPEN}|{_CLOSE}", text)]
    if marks:
        places = np.asarray(spans)
        spans = (places - len(_OPEN) * np.searchsorted(marks, places)).tolist()
    if weights is None:
        return ids, tokens_within(offsets, spans)
    learned = np.zeros(len(ids), np.float32)
    for span, weight in zip(spans, weights[len(weights) - len(spans) :], strict=True):
        learned[tokens_within(offsets, [span])] = weight
    return ids, learned


def tokens_within(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """bool [tokens]: those that hold a character of a span; both are in the order of the text."""
    within = np.zeros(len(offsets), bool)
    remaining = iter(spans)
    span = next(remaining, None)
    for number, (begin, end) in enumerate(offsets):
        while span is not None and begin >= span[1]:
            span = next(remaining, None)
        if span is None:
            break
        within[number] = begin < span[1] and end > span[0]
    return within


@dataclass(frozen=True)
class _Piece:
    """A piece of a text, in which special tokens count or not; first: the beginning of the text."""

    text: str
    allow_special: bool
    first: bool


def _pieces(text: str, special: dict[str, int]) -> list[_Piece]:
    """A text cut where messages have special tokens' strings, without the marks: those are pieces of their own.

    Source: transformers' `encode_marked_chat`, of `apply_chat_template(..., sanitize_control_tokens=True)`.
    """
    parts = enumerate(_marked_pattern(tuple(special)).split(text))
    return [_Piece(part, number % 2 == 0, number == 0) for number, part in parts if part]


def _encode(tokenizer: Tokenizer, piece: _Piece) -> list[int]:
    """Ids of a piece, without the space that tokenizers put before a text unless it is the first."""
    if not piece.first:
        newline = tokenizer.encode("\n", allow_special=True)
        ids = tokenizer.encode(f"\n{piece.text}", piece.allow_special)
        if ids[: len(newline)] == newline:  # else the line break has become a part of what follows
            return ids[len(newline) :]
    return tokenizer.encode(piece.text, piece.allow_special)


def _encode_with_offsets(tokenizer: Tokenizer, pieces: Sequence[_Piece]) -> tuple[list[int], list[Span]]:
    """Ids of pieces, and their characters in the text that they come to."""
    ids: list[int] = []
    offsets: list[Span] = []
    begin = 0
    for piece in pieces:
        found, places = tokenizer.encode_with_offsets(piece.text, piece.allow_special)
        part = found if piece.first else _encode(tokenizer, piece)
        if found != part:  # with the line break before it
            _, places = tokenizer.encode_with_offsets(f"\n{piece.text}", piece.allow_special)
            places = [(max(start - 1, 0), max(end - 1, 0)) for start, end in places[len(places) - len(part) :]]
        ids += part
        offsets += [(begin + start, begin + end) for start, end in places]
        begin += len(piece.text)
    return ids, offsets


def _with_marks(value: Any, special: dict[str, int]) -> Any:
    """`value` with marks around each special token's string of its texts."""
    if isinstance(value, str) and special:
        return _pattern(tuple(special)).sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
    if isinstance(value, Mapping):
        return {key: _with_marks(item, special) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_marks(item, special) for item in value]
    return value


@functools.lru_cache(maxsize=8)
def _pattern(special: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


@functools.lru_cache(maxsize=8)
def _marked_pattern(special: tuple[str, ...]) -> re.Pattern[str]:
    """A special token with a mark on either side, one of which a template may have cut off, or a mark alone."""
    token = f"(?:{_pattern(special).pattern})"
    return re.compile(f"(?:{_OPEN})?({token}(?={_CLOSE})|(?<={_OPEN}){token})(?:{_CLOSE})?|{_OPEN}|{_CLOSE}")
