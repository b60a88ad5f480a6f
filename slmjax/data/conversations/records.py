"""Records of any of the usual shapes to conversations, or to a prompt and its completion."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from slmjax.data.conversations.messages import messages_in_text, read_messages, read_sharegpt
from slmjax.data.conversations.values import filled, is_blank, objects, plain, structure
from slmjax.data.reading.fields import ABSENT, find_field
from slmjax.errors import UserError, first_few

# By what a shape is told: fields that it must have, and the one of them that must not be blank.
_SHAPES = (
    (("messages",), "messages"),
    (("conversations",), "conversations"),
    (("prompt", "completion"), "completion"),
    (("instruction", "output"), "output"),
    (("text",), "text"),
)
OPTIONAL = ("tools", "system", "input", "history")  # fields that a record may lack


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; the last `completion` of the assistant's turns are what a prompt asked for."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    completion: int = 1


@dataclasses.dataclass(frozen=True)
class Passage:
    """Text and what goes on from it; the prompt is None where the record is just a text."""

    prompt: str | None
    completion: str


def parse_record(record: Any, fields: Mapping[str, str], system: str = "") -> Conversation | Passage:
    """The record as what can be trained on, by the first of these that it has and that is not blank.

    messages        OpenAI's: role, content (text, or parts of text), tool_calls; `tools` beside it
    conversations   ShareGPT's: from, value; `system` and `tools` beside it (a bare list of such turns is one too)
    prompt, completion    two strings, or two lists of messages (a string prompt then is the user's)
    instruction, output   Alpaca's, a chat of two messages; with `input`, `system` and `history` if there
    text            a text

    Lists and objects may be JSON text. What is blank (null, white space, an empty list) counts as missing; so does the
    instruction where there is an input.

    Args:
        record: a JSON object, a row of a table or a TFDS example.
        fields: {our name: the record's, or the path there, as in "data.turns"}, where they differ.
        system: the system prompt of conversations that have none.

    Raises:
        UserError: one sentence on what is wrong with the record, without its place.
    """
    if isinstance(record, list) and record and not fields:  # a list of turns
        for name, mark in (("messages", "role"), ("conversations", "from")):
            if all(isinstance(turn, Mapping) and mark in turn for turn in record):
                record = {name: record}
                break
    if not isinstance(record, Mapping):
        raise UserError(f"The record must be an object with fields, not {type(record).__name__}.")
    renamed = {ours: find_field(record, theirs) for ours, theirs in fields.items()}
    if missing := [fields[ours] for ours, value in renamed.items() if value is ABSENT and ours not in OPTIONAL]:
        raise UserError(f"The record has no field {missing[0]!r}, only {_names(record)}.")
    renamed = {ours: None if value is ABSENT else value for ours, value in renamed.items()}
    values = plain({**record, **renamed})
    shape = _shape(values)
    values = {name: value for name, value in values.items() if name in shape or not is_blank(value)}
    tools = objects(values.get("tools"), "The value of tools") or None
    match shape:
        case ("messages",):
            conversation = Conversation(read_messages(values["messages"]), tools)
        case ("conversations",):
            conversation = Conversation(
                _with_system(read_sharegpt(values["conversations"]), values.get("system")), tools
            )
        case ("prompt", "completion"):
            pair = _prompt_completion(values["prompt"], values["completion"], tools)
            if isinstance(pair, Passage):
                return pair
            conversation = pair
        case ("instruction", "output"):
            conversation = Conversation(_with_system(_alpaca(values), values.get("system")), tools)
        case ("text",):
            return Passage(None, filled(values["text"], "The text"))
        case _:
            raise UserError(
                "The record has none of messages, conversations, prompt and completion, instruction and output, or "
                f"text, only {_names(record)}: set the fields of its source."
            )
    return dataclasses.replace(conversation, messages=_with_system(conversation.messages, system))


def _shape(values: dict[str, Any]) -> tuple[str, ...]:
    """The fields of the first shape that is there and says something; else of the first that is there."""
    there = [
        (names, needed)
        for names, needed in _SHAPES
        if all(values.get(name) is not None or (name == "instruction" and _has_input(values)) for name in names)
    ]
    return next((names for names, needed in there if not is_blank(values[needed])), there[0][0] if there else ())


def _has_input(values: dict[str, Any]) -> bool:
    return "instruction" in values and not is_blank(values.get("input"))


def _prompt_completion(prompt: Any, completion: Any, tools: list[dict[str, Any]] | None) -> Conversation | Passage:
    if isinstance(prompt, str) and isinstance(completion, str):
        pair = messages_in_text(prompt), messages_in_text(completion)
        if all(pair):
            return _prompt_completion(pair[0], pair[1], tools)
        return Passage(prompt, filled(completion, "The completion"))
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not isinstance(asked, list) or not isinstance(answer, list):
        raise UserError("The prompt and the completion must be strings or lists of messages.")
    messages = read_messages([*asked, *answer])
    turns = sum(message["role"] == "assistant" for message in messages[len(asked) :])
    if not turns:
        raise UserError("The completion has no message of the assistant.")
    return Conversation(messages, tools, completion=turns)


def _alpaca(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Instruction and input are one message, with a blank line between them."""
    messages = []
    for turn in structure(values.get("history"), list, "The value of history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UserError("The history must be a list of pairs of instruction and answer.")
        if not all(map(is_blank, turn)):
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    parts = {name: values[name] for name in ("instruction", "input") if not is_blank(values.get(name))}
    asked = [filled(part, f"The {name}") for name, part in (parts or {"instruction": ""}).items()]
    messages.append({"role": "user", "content": "\n\n".join(asked)})
    return read_messages([*messages, {"role": "assistant", "content": values["output"]}])


def _with_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    if is_blank(system) or messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": filled(system, "The system prompt")}, *messages]


def _names(record: Mapping[Any, Any]) -> str:
    return first_few([str(name)[:60] for name in record], 20)
