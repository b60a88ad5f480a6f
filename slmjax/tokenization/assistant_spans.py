"""Which characters of a rendered conversation the assistant wrote, where the template does not say so itself.

A template is a black box, so each turn is found by rendering the conversation in part and by comparing. Every step is
checked against the whole text: a span is either certain or an error, since a wrong one would teach a model in silence.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slmjax.errors import UserError

Span = tuple[int, int]  # characters [begin, end)
_PROBE = f"\ue002{secrets.token_hex(8)}\ue003"  # a content that no text holds and that no template changes


@dataclass(frozen=True)
class Rendering:
    """What to render."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool


# Each rendering to {"text"}, or to {"error"} where the template fails on it.
Render = Callable[[Sequence[Rendering]], list[dict[str, Any]]]


def find_spans(messages: list[dict[str, Any]], render: Render) -> tuple[str, list[Span]]:
    """The text of a conversation and the span of each assistant turn.

    A span begins where the generation prompt ends, or, in a template without one, where the content begins. It ends
    with what ends the turn, white space after that left out; where nothing but white space does, that is the end.

    Raises:
        UserError: the whole does not render, or a turn's place is not certain.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    renderings = [Rendering(messages, False)]
    for i in turns:
        before = messages[:i]
        renderings += [
            Rendering(before, True),
            Rendering(before, False),
            Rendering([*before, {"role": "assistant", "content": _PROBE}], False),
            Rendering(messages[: i + 1], False),
        ]
    whole, *parts = render(renderings)
    if "text" not in whole:
        verb = "refuses" if whole["raised"] else "cannot render"
        raise UserError(f"The chat template {verb} the conversation ({' '.join(whole['error'].split())[:300]}).")
    text: str = whole["text"]
    spans: list[Span] = []
    for number, i in enumerate(turns):
        prompt, past, probe, after = (part.get("text") for part in parts[4 * number : 4 * number + 4])
        span = _by_prefix(text, prompt, past, probe, after) or _by_replacement(text, messages, i, render)
        if span is None or span[0] >= span[1] or (spans and span[0] < spans[-1][1]):
            raise UserError(
                f"The chat template does not show which text message {i + 1}, of the assistant, became: "
                "mark it with {% generation %} and {% endgeneration %} in the template."
            )
        spans.append(span)
    return text, spans


def _by_prefix(text: str, prompt: str | None, past: str | None, probe: str | None, after: str | None) -> Span | None:
    """The turn as what its message adds to the generation prompt, if `text` begins so."""
    if after is None or probe is None or probe.count(_PROBE) != 1:
        return None
    header, tail = probe.split(_PROBE)
    if prompt is not None and prompt != past and after.startswith(prompt):
        begin = len(prompt)
    elif after.startswith(header):  # no generation prompt: the header is what comes before any content
        begin = len(header)
    else:
        return None
    blank = _blank_end(tail)
    if not after.endswith(blank):
        return None
    end = len(after) - len(blank)
    return (begin, end) if text.startswith(after[:end]) else None


def _by_replacement(text: str, messages: list[dict[str, Any]], i: int, render: Render) -> Span | None:
    """The turn by another content in its place: for templates that render a turn by what follows it.

    The content is what differs; the end of the turn is what follows the content when the turn is the last.
    """
    changed = {**messages[i], "content": _PROBE}
    answers = render(
        [
            Rendering([*messages[:i], changed, *messages[i + 1 :]], False),
            Rendering([*messages[:i], changed], False),
        ]
    )
    replaced, last = (answer.get("text", "") for answer in answers)
    if replaced.count(_PROBE) != 1 or last.count(_PROBE) != 1:
        return None
    before, after = replaced.split(_PROBE)
    content_end = len(text) - len(after)
    if not (len(before) <= content_end and text.startswith(before) and text.endswith(after)):
        return None
    tail = last.split(_PROBE)[1]
    ending = tail[: len(tail) - len(_blank_end(tail))]
    if not after.startswith(ending):
        # The last turn ends with more than the others (Phi-3 closes the text): up to the white space before it differs.
        common = next(
            (i for i, (a, b) in enumerate(zip(tail, after, strict=False)) if a != b), min(len(tail), len(after))
        )
        shared = re.fullmatch(r"(.*\S)\s+\S*", tail[:common], re.DOTALL)
        if shared is None:
            return None
        ending = shared[1]
    return len(before), content_end + len(ending)


def _blank_end(tail: str) -> str:
    """The white space after what ends a turn; none of it where white space alone ends the turn."""
    kept = tail.rstrip()
    return tail[len(kept) :] if kept else ""
