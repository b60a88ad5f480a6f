"""Records of any of the usual shapes to conversations, or to a prompt and its completion."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.errors import UserError, did_you_mean, first_few, one_line

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_SEQUENCES = ("messages", "conversations", "prompt", "completion")  # of messages; TFDS stores them as columns


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
    """The record as what can be trained on, by the first of these that it has.

    messages        OpenAI's: role, content (text, or parts of text), tool_calls; `tools` beside it
    conversations   ShareGPT's: from, value; `system` and `tools` beside it
    prompt, completion    two strings, or two lists of messages (a string prompt then is the user's)
    instruction, output   Alpaca's, a chat of two messages; with `input`, `system` and `history` if there
    text            a text

    Args:
        record: a JSON object, a row of Parquet or a TFDS example.
        fields: {our name: the record's}, where they differ.
        system: the system prompt of conversations that have none.

    Raises:
        UserError: one sentence on what is wrong with the record, without its place.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"The record must be an object with fields, not {type(record).__name__}.")
    if missing := [theirs for theirs in fields.values() if theirs not in record]:
        raise UserError(f"The record has no field {missing[0]!r}, only {first_few(list(map(str, record)), 20)}.")
    renamed = {**record, **{ours: record[theirs] for ours, theirs in fields.items()}}
    values = {name: value for name, value in _plain(renamed).items() if value is not None}
    tools = _json(values.get("tools"), list, "The value of tools")
    if "messages" in values:
        conversation = Conversation(_messages(values["messages"]), tools)
    elif "conversations" in values:
        conversation = Conversation(_with_system(_sharegpt(values["conversations"]), values.get("system")), tools)
    elif "prompt" in values and "completion" in values:
        pair = _prompt_completion(values["prompt"], values["completion"], tools)
        if isinstance(pair, Passage):
            return pair
        conversation = pair
    elif "instruction" in values and "output" in values:
        conversation = Conversation(_with_system(_alpaca(values), values.get("system")), tools)
    elif "text" in values:
        return Passage(None, _filled(values["text"], "The text"))
    else:
        raise UserError(
            "The record has none of messages, conversations, prompt and completion, instruction and output, or text, "
            f"only {first_few(list(map(str, record)), 20)}: set the fields of its source."
        )
    return dataclasses.replace(conversation, messages=_with_system(conversation.messages, system))


def _messages(values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not values:
        raise UserError("The messages must be a list of at least one.")
    return [_message(value, number) for number, value in enumerate(values, 1)]


def _message(value: Any, number: int) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("role") not in _ROLES:
        role = value.get("role") if isinstance(value, dict) else value
        raise UserError(
            f"Message {number} has the unknown role {str(role)[:60]!r}: {did_you_mean(str(role)[:60], _ROLES)}"
        )
    message = {name: field for name, field in value.items() if field is not None}
    content = message.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise UserError(f"Message {number} has parts that are not text.")
        content = message["content"] = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UserError(f"The content of message {number} must be text, not {type(content).__name__}.")
    message.setdefault("content", content)  # templates read it beside tool calls too
    if message.get("tool_calls"):
        message["tool_calls"] = [
            _tool_call(call, number)
            for call in _json(message["tool_calls"], list, f"The value of tool_calls in message {number}")
        ]
    elif value["role"] == "assistant":
        _filled(content, f"Message {number}, of the assistant,")
    return message


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    """Arguments as a dict: OpenAI writes them as JSON text, which templates would quote a second time."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"Message {number} has a tool call without the name of its function.")
    arguments = _json(
        function.get("arguments") or {}, dict, f"The value of the arguments of a tool call in message {number}"
    )
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _sharegpt(values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UserError("The conversations must be a list of objects with from and value.")
    messages = []
    for number, value in enumerate(values, 1):
        if "role" in value:
            messages.append(value)
            continue
        speaker, text = value.get("from"), value.get("value")
        if not isinstance(speaker, str) or speaker not in _SHAREGPT:
            raise UserError(
                f"Turn {number} is from the unknown {str(speaker)[:60]!r}: {did_you_mean(str(speaker)[:60], _SHAREGPT)}"
            )
        message: dict[str, Any] = {"role": _SHAREGPT[speaker], "content": text}
        if speaker == "function_call":
            calls = _json(text, (dict, list), f"The function call of turn {number}")
            message |= {"content": None, "tool_calls": calls if isinstance(calls, list) else [calls]}
        messages.append(message)
    return _messages(messages)


def _prompt_completion(prompt: Any, completion: Any, tools: list[dict[str, Any]] | None) -> Conversation | Passage:
    if isinstance(prompt, str) and isinstance(completion, str):
        return Passage(prompt, _filled(completion, "The completion"))
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not isinstance(asked, list) or not isinstance(answer, list):
        raise UserError("The prompt and the completion must be strings or lists of messages.")
    turns = sum(isinstance(message, dict) and message.get("role") == "assistant" for message in answer)
    if not turns:
        raise UserError("The completion has no message of the assistant.")
    return Conversation(_messages([*asked, *answer]), tools, completion=turns)


def _alpaca(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Instruction and input are one message, with a blank line between them."""
    messages = []
    history = values.get("history", [])
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UserError("The history must be a list of pairs of instruction and answer.")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = _filled(values["instruction"], "The instruction")
    if values.get("input"):
        asked += "\n\n" + _filled(values["input"], "The input")
    return _messages(
        [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": values["output"]}]
    )


def _with_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    if not system or messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": _filled(system, "The system prompt")}, *messages]


def _filled(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{what} must be text, not {type(text).__name__}.")
    if not text.strip():
        raise UserError(f"{what} is empty.")
    return text


_JSON_NAMES = {list: "a list", dict: "an object", (dict, list): "an object or a list"}


def _json(value: Any, kind: Any, what: str) -> Any:
    """`value`, out of JSON text if it is such (Parquet has no other way for open structures), of the wanted type."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{what} is not valid JSON ({one_line(error)}).") from error
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{what} must be {_JSON_NAMES[kind]}, not {type(value).__name__}.")
    return value


def _plain(value: Any) -> Any:
    """TFDS's arrays and bytes as lists and text; its sequences of features, {name: list}, as lists of dicts."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"The record has text that is not UTF-8 (byte {error.start}).") from error
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {
            name: _columns_to_records(_plain(item)) if name in _SEQUENCES else _plain(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _columns_to_records(value: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1:
        raise UserError("The messages have fields of different lengths.")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
