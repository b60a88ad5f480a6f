"""Conversations to token ids, and which of them the assistant wrote.

Special tokens are what the template writes. A special token's string inside a message stays text, whoever wrote the
message: it can neither end a turn nor begin one.
"""

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.tokenization.assistant_spans import Span
from slmjax.tokenization.chat_template import ChatTemplate, Message
from slmjax.tokenization.tokenizer import Tokenizer

# Put into a special token's string that stands in a message: then it is no longer one. No text can hold it.
_MARK = f"\ue010{secrets.token_hex(8)}"


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
    return _encode(tokenizer, text, special)[0]


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
    ids, offsets = _encode(tokenizer, text, special)
    if weights is not None and len(weights) != len(spans):
        raise UserError(
            f"The chat template marks {len(spans)} stretches of text for the {len(weights)} messages of the assistant, "
            "so their weights cannot be applied: put one {% generation %} block around each message."
        )
    if last is not None:
        spans = spans[len(spans) - last :]
    if _MARK in text:
        marks = [found.start() for found in re.finditer(_MARK, text)]
        places = np.asarray(spans)
        spans = (places - len(_MARK) * np.searchsorted(marks, places)).tolist()
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


def _encode(tokenizer: Tokenizer, text: str, special: dict[str, int]) -> tuple[list[int], list[Span]]:
    """Ids and places in the text without marks."""
    if _MARK not in text:
        return tokenizer.encode_with_offsets(text, allow_special=True)
    ids: list[int] = []
    offsets: list[Span] = []
    begin = 0
    for part in _pattern(tuple(special)).split(text):
        if part in special:
            part_ids, places = [special[part]], [(0, len(part))]
        else:
            part = part.replace(_MARK, "")
            part_ids, places = tokenizer.encode_with_offsets(part)
        ids += part_ids
        offsets += [(begin + start, begin + end) for start, end in places]
        begin += len(part)
    return ids, offsets


def _with_marks(value: Any, special: dict[str, int]) -> Any:
    """`value` with a mark inside each special token's string of its texts."""
    if isinstance(value, str) and special:
        return _pattern(tuple(special)).sub(lambda found: found[0][0] + _MARK + found[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _with_marks(item, special) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_marks(item, special) for item in value]
    return value


@functools.lru_cache(maxsize=8)
def _pattern(special: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    return re.compile(f"((?:{'|'.join(map(re.escape, longest_first))})(?!{_MARK}))")
