"""Every usual shape of record becomes the same conversation; what cannot be learned from is named."""

import json

import numpy as np
import pytest

from slmjax.data.conversations.records import Conversation, Passage, parse_record
from slmjax.errors import UserError

SYSTEM = {"role": "system", "content": "s"}
MESSAGES = [SYSTEM, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAPES = {
    "messages": {"messages": MESSAGES},
    "parts": {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]},
    "absent fields of Parquet": {"messages": [{**m, "name": None} for m in MESSAGES], "prompt": None},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    "sharegpt with roles": {"conversations": MESSAGES},
    "prompt and completion of messages": {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]},
    "alpaca": {"instruction": "q", "input": "", "output": "a", "system": "s"},
    "bytes and columns of TFDS": {
        "messages": {
            "role": np.array([b"system", b"user", b"assistant"], object),
            "content": np.array([b"s", b"q", b"a"], object),
        }
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_gives_the_same_conversation(name):
    assert parse_record(SHAPES[name], {}) == Conversation(MESSAGES)


def test_fields_are_renamed_and_a_system_prompt_is_added_where_there_is_none():
    record = {"question": "q", "answer": "a", "text": "t"}
    assert parse_record(record, {"instruction": "question", "output": "answer"}, "s") == Conversation(MESSAGES)
    assert parse_record(record, {"prompt": "question", "completion": "answer"}, "s") == Passage("q", "a")
    assert parse_record(SHAPES["messages"], {}, "other") == Conversation(MESSAGES)
    assert parse_record({"text": "t"}, {}) == Passage(None, "t")


def test_alpacas_input_and_history():
    record = {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]]}
    assert [m["content"] for m in parse_record(record, {}).messages] == ["q0", "a0", "q\n\ni", "a"]


def test_calls_of_tools_have_their_arguments_as_values():
    arguments, tools = {"x": [1, None]}, [{"type": "function", "function": {"name": "f"}}]
    for written in (arguments, json.dumps(arguments)):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": written}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        record = {"messages": [*MESSAGES[:2], answer], "tools": json.dumps(tools)}
        conversation = parse_record(record, {})
        assert conversation.messages[-1]["tool_calls"][0]["function"]["arguments"] == arguments
        assert conversation.messages[-1]["content"] == ""
        assert conversation.tools == tools
    turn = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": arguments})}
    shared = parse_record({"conversations": [{"from": "human", "value": "q"}, turn]}, {})
    assert shared.messages[-1]["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}


BAD = {
    "unknown role": (
        {"messages": [{"role": "narrator", "content": "x"}]},
        r"Message 1 has the unknown role 'narrator'",
    ),
    "unknown speaker": ({"conversations": [{"from": "bing", "value": "x"}]}, "Turn 1 is from the unknown 'bing'"),
    "empty answer": ({"messages": [MESSAGES[1], {"role": "assistant", "content": " "}]}, "Message 2.*assistant.*empty"),
    "no answer": ({"messages": [MESSAGES[1], {"role": "assistant", "content": None}]}, "Message 2.*empty"),
    "empty completion": ({"prompt": "q", "completion": "\n"}, "The completion is empty"),
    "empty output": ({"instruction": "q", "output": ""}, "assistant.*empty"),
    "no messages": ({"messages": []}, "must be a list of at least one"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are not text"),
    "number": ({"messages": [{"role": "user", "content": 5}]}, "must be text, not int"),
    "completion without assistant": (
        {"prompt": MESSAGES[:1], "completion": MESSAGES[:1]},
        "no message of the assistant",
    ),
    "call without name": ({"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "without the name"),
    "broken arguments": (
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
        "not valid JSON",
    ),
    "broken tools": ({"messages": MESSAGES, "tools": "{}"}, "tools must be a list, not dict"),
    "other fields": ({"body": "x"}, "none of messages.*only body: set the fields"),
    "no object": ([1], "must be an object with fields, not list"),
    "columns of different lengths": ({"messages": {"role": ["user"], "content": []}}, "different lengths"),
    "bytes that are no text": ({"text": b"\xff"}, "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_learned_from_gets_one_sentence(name):
    record, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        parse_record(record, {})
    assert "\n" not in str(caught.value)


def test_a_renamed_field_that_is_missing_is_named():
    with pytest.raises(UserError, match="no field 'question', only text"):
        parse_record({"text": "t"}, {"prompt": "question"})
