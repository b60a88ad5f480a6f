"""Content that a chat template leaves out: found by rendering a conversation once more with marks in place of texts.

A template that knows no tools writes an answer that only calls one as an empty answer, and it would be learned as such.
"""

import secrets
from collections.abc import Iterator
from typing import Any

from slmjax.data.conversations.records import Conversation
from slmjax.errors import UserError
from slmjax.tokenization.chat_template import ChatTemplate

_MARK = f"q{secrets.token_hex(6)}"  # letters and digits, which no template quotes otherwise
# What an answer cannot be learned without, as errors name it.
_NEEDED = {"call": "the tool calls", "arguments": "the arguments of the tool calls", "result": "the content"}
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Unwritten:
    """Content that templates leave out, remembered by the form of a conversation (roles, and what each message has)."""

    def __init__(self) -> None:
        self._lost: dict[Any, list[tuple[str, int]]] = {}

    def check(self, template: ChatTemplate, conversation: Conversation) -> list[str]:
        """The kinds of content that `template` does not write and that an answer can be learned without.

        Raises:
            UserError: it does not write calls of tools, or what the tools answered.
        """
        form = (template.source, _form(conversation))
        if form not in self._lost:
            self._lost[form] = list(_lost(template, conversation))
        for what, number in self._lost[form]:
            if what in _NEEDED:
                raise UserError(
                    f"The chat template does not write {_NEEDED[what]} of message {number}: set data.chat_template to "
                    "one that does."
                )
        return sorted({what for what, _ in self._lost[form]})


def _form(conversation: Conversation) -> Any:
    messages = [
        (
            message["role"],
            bool(message["content"].strip()),
            tuple(bool(call["function"]["arguments"]) for call in message.get("tool_calls", ())),
            any(name in message for name in _REASONING),
        )
        for message in conversation.messages
    ]
    return tuple(messages), bool(conversation.tools)


def _lost(template: ChatTemplate, conversation: Conversation) -> Iterator[tuple[str, int]]:
    marks: list[tuple[str, int]] = []  # what each mark stands for

    def mark(what: str, number: int) -> str:
        marks.append((what, number))
        return f"{_MARK}x{len(marks)}x"

    messages = [_marked(message, n, mark) for n, message in enumerate(conversation.messages, 1)]
    if messages[-1]["role"] == "assistant":  # what was thought before earlier answers is left out on purpose
        messages[-1] |= {name: mark("reasoning", len(messages)) for name in _REASONING if name in messages[-1]}
    tools = [_named(tool, mark("a list of tools", 0)) for tool in conversation.tools or ()] or None
    if not marks:
        return
    try:
        text = template.render(messages, tools=tools)
    except UserError:  # of a template that looks into the texts; the conversation itself was rendered
        return
    for number, (what, place) in enumerate(marks, 1):
        if f"{_MARK}x{number}x" not in text:
            yield what, place


def _marked(message: dict[str, Any], number: int, mark: Any) -> dict[str, Any]:
    role, marked = message["role"], dict(message)
    if role in ("system", "developer") and message["content"].strip():
        marked["content"] = mark("a system prompt", number)
    elif role == "tool" and message["content"].strip():
        marked["content"] = mark("result", number)
    if "tool_calls" in message:
        if message["content"].strip():
            marked["content"] = mark("text beside tool calls", number)
        marked["tool_calls"] = [_marked_call(call, number, mark) for call in message["tool_calls"]]
    return marked


def _marked_call(call: dict[str, Any], number: int, mark: Any) -> dict[str, Any]:
    function = dict(call["function"], name=mark("call", number))
    if function["arguments"]:
        function["arguments"] = {**function["arguments"], "mark": mark("arguments", number)}
    return {**call, "function": function}


def _named(tool: dict[str, Any], name: str) -> dict[str, Any]:
    function = tool.get("function")
    if isinstance(function, dict):
        return {**tool, "function": {**function, "name": name}}
    return {**tool, "name": name}
