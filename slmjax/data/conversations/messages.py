"""Messages of conversations, brought to one shape: roles, texts, calls of tools, and how much a turn is learned."""

import json
from typing import Any

from slmjax.data.conversations.values import filled, is_blank, objects, structure
from slmjax.errors import UserError, did_you_mean

# Speakers as files name them, in small letters.
_ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "tool_response", "tool_result"), "tool"),
}
_CALLS = ("function_call", "tool_call")  # speakers whose text is a call
# OpenAI's and Mistral's name, axolotl's two, ms-swift's.
_WEIGHTS = ("weight", "train", "training", "loss")
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_KEPT = ("role", "content")  # though blank


def read_messages(values: Any) -> list[dict[str, Any]]:
    """OpenAI's messages, a list or JSON text of one: role, content, tool_calls ..."""
    values = structure(values, list, "The value of messages")
    if not values:
        raise UserError("The messages must be a list of at least one.")
    return [_message(value, number) for number, value in enumerate(values, 1)]


def read_sharegpt(values: Any) -> list[dict[str, Any]]:
    """ShareGPT's turns, a list or JSON text of one: from and value. A blank turn of the system is none."""
    values = structure(values, list, "The value of conversations")
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UserError("The conversations must be a list of objects with from and value.")
    messages = [value if not is_blank(value.get("role")) else _turn(value, n) for n, value in enumerate(values, 1)]
    if len(messages) > 1 and _role(messages[0].get("role")) == "system" and is_blank(_text(messages[0])):
        messages = messages[1:]
    return read_messages(messages)


def messages_in_text(text: str) -> list[Any] | None:
    """The messages that a text holds as JSON; None where it is just a text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    are_messages = all(isinstance(value, dict) and "role" in value and "content" in value for value in values)
    return values if values and are_messages else None


def turn_weight(message: dict[str, Any], what: str = "The message") -> float | None:
    """A turn's share in the loss, 0 to 1, by its `weight`, `train`, `training` and `loss`; None without them.

    Raises:
        UserError: one of them is something else; `what` names the message.
    """
    weight = None
    for name in _WEIGHTS:
        value = message.get(name)
        if is_blank(value):
            continue
        share = _share(value)
        if share is None:
            raise UserError(f"{what} has the {name} {str(value)[:60]!r}, which must be true, false or from 0 to 1.")
        weight = share if weight is None else weight * share
    return weight


def assistant_weights(messages: list[dict[str, Any]]) -> list[float] | None:
    """The weight of each of the assistant's messages, 1 where it has none; None where all are 1."""
    weights = [turn_weight(message) for message in messages if message["role"] == "assistant"]
    filled_in = [1.0 if weight is None else weight for weight in weights]
    return None if all(weight == 1 for weight in filled_in) else filled_in


def _share(value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            value = _WORDS[text] if text in _WORDS else float(text)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _role(value: Any) -> str | None:
    return _ROLES.get(value.strip().lower()) if isinstance(value, str) else None


def _text(message: dict[str, Any]) -> Any:
    return next((message[name] for name in ("content", "value", "text") if message.get(name) is not None), None)


def _turn(value: dict[str, Any], number: int) -> dict[str, Any]:
    """A turn of ShareGPT as a message of OpenAI."""
    speaker = value.get("from")
    kept = {name: value[name] for name in (*_WEIGHTS, "train_detail", "name", "tool_calls") if name in value}
    if isinstance(speaker, str) and speaker.strip().lower() in _CALLS:
        return {**kept, "role": speaker, "content": _text(value)}
    if _role(speaker) is None:
        known = [*_ROLES, *_CALLS]
        raise UserError(
            f"Turn {number} is from the unknown {str(speaker)[:60]!r}: {did_you_mean(str(speaker)[:60], known)}"
        )
    return {**kept, "role": _role(speaker), "content": _text(value)}


def _message(value: Any, number: int) -> dict[str, Any]:
    what = f"Message {number}"
    if not isinstance(value, dict):
        raise UserError(f"{what} has the unknown role {str(value)[:60]!r}: give an object with role and content.")
    message = {name: field for name, field in value.items() if not is_blank(field) or name in _KEPT}
    message = {name: field for name, field in message.items() if field is not None}
    speaker = str(value.get("role")).strip().lower()
    if speaker in _CALLS:
        calls = structure(_text(value), (dict, list), f"The function call of message {number}") or []
        message |= {"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}
        message.pop("content", None)
    elif (role := _role(value.get("role"))) is not None:
        message["role"] = role
    else:
        unknown = str(value.get("role"))[:60]
        raise UserError(f"{what} has the unknown role {unknown!r}: {did_you_mean(unknown, _ROLES)}")
    if "content" not in message and speaker not in _CALLS and _text(value) is not None:
        message["content"] = _text(value)
    _set_calls(message, number)
    message["content"] = _content(message, what)  # templates read it beside tool calls too
    if "train_detail" in message:
        raise UserError(f"{what} has a train_detail, which is not read: give the whole turn a weight.")
    if turn_weight(message, what) != 0 and message["role"] == "assistant" and "tool_calls" not in message:
        filled(message["content"], f"{what}, of the assistant,")
    return message


def _content(message: dict[str, Any], what: str) -> str:
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    is_parts = isinstance(content, list)
    if is_parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if message["role"] == "tool":  # a result that was not yet written as text
        return json.dumps(content, ensure_ascii=False)
    if is_parts:
        raise UserError(f"{what} has parts that are not text.")
    raise UserError(f"The content of {what.lower()} must be text, not {type(content).__name__}.")


def _set_calls(message: dict[str, Any], number: int) -> None:
    """`tool_calls` as a list of at least one, also out of the `function_call` that OpenAI had before; or none."""
    calls = message.pop("tool_calls", None)
    if isinstance(calls, dict):
        calls = [calls]
    calls = objects(calls, f"The value of tool_calls in message {number}")
    if message["role"] == "assistant" and not is_blank(single := message.pop("function_call", None)):
        calls.append(structure(single, dict, f"The function call of message {number}"))
    if calls:
        message["tool_calls"] = [_tool_call(call, number) for call in calls]


def _tool_call(call: dict[str, Any], number: int) -> dict[str, Any]:
    """Arguments as a dict: OpenAI writes them as JSON text, which templates would quote a second time."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"Message {number} has a tool call without the name of its function.")
    arguments = function.get("arguments")
    arguments = {} if is_blank(arguments) else arguments
    arguments = structure(arguments, dict, f"The value of the arguments of a tool call in message {number}")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}
