"""Records with blank fields, other names of roles, weights of turns and calls of tools: read alike, or told."""

import copy
import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.conversations.encoding import Encoder, EncodingReport
from slmjax.data.conversations.examples import load_examples
from slmjax.data.conversations.records import Conversation, Passage, parse_record
from slmjax.data.packing import PackedRows
from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError
from slmjax.tokenization.chat_template import PLAIN_TEMPLATE, ChatTemplate
from slmjax.tokenization.tokenizer import train_bpe

CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{{ '<|tools|>' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<|call|>' + call.function | tojson }}{% endfor %}"
    "{{ eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
EOS = "<|endoftext|>"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
BLANKS = st.sampled_from(["", " ", "\n\t", None, [], float("nan")])
SHAPES = [
    {"messages": [USER, ANSWER]},
    {"conversations": SHAREGPT},
    {"prompt": "q", "completion": "a"},
    {"prompt": [USER], "completion": "a"},
    {"instruction": "q", "output": "a"},
    {"text": "t"},
]
OPTIONAL = ("tools", "system", "input", "history")


@given(st.sampled_from(SHAPES), st.dictionaries(st.sampled_from([*OPTIONAL, "id", "name"]), BLANKS))
def test_blank_fields_are_as_if_missing(record, blanks):
    assert parse_record({**blanks, **record}, {}) == parse_record(record, {})


@given(st.sampled_from(SHAPES), st.sampled_from(SHAPES), BLANKS)
def test_a_shape_that_is_blank_gives_way_to_one_that_is_filled(record, other, blank):
    absent = {name: blank for name in other if name not in record}
    assert parse_record({**absent, **record}, {}) == parse_record(record, {})


@given(st.dictionaries(st.sampled_from(["tool_calls", "function_call", "name", "weight", "reasoning_content"]), BLANKS))
def test_blank_fields_of_messages_are_as_if_missing(blanks):
    record = {"messages": [{**blanks, **USER}, {**blanks, **ANSWER}]}
    assert parse_record(record, {}) == Conversation([USER, ANSWER])


def test_alpacas_instruction_may_be_blank_where_there_is_an_input():
    for instruction in ("", None, " "):
        record = {"instruction": instruction, "input": "q", "output": "a", "history": [["", ""], [None, None]]}
        assert parse_record(record, {}) == Conversation([USER, ANSWER])
    with pytest.raises(UserError, match="The instruction is empty"):
        parse_record({"instruction": "", "input": " ", "output": "a"}, {})


ROLES = {
    "user": ["user", "User", "HUMAN", " human ", "prompter"],
    "assistant": ["assistant", "Assistant", "GPT", "model", "bot", "AI"],
    "system": ["system", "System"],
    "tool": ["tool", "Tool", "function", "ipython", "observation", "tool_response"],
}


@pytest.mark.parametrize("shape", ["messages", "conversations"])
@pytest.mark.parametrize("role", ROLES)
def test_roles_have_many_names_in_both_shapes(shape, role):
    for name in ROLES[role]:
        if shape == "messages":
            turns = [{"role": name, "content": "x"}, {"role": "assistant", "content": "a"}]
        else:
            turns = [{"from": name, "value": "x"}, {"from": "gpt", "value": "a"}]
        assert parse_record({shape: turns}, {}) == Conversation([{"role": role, "content": "x"}, ANSWER])


def test_structures_may_be_text_in_json_or_as_python_prints_them():
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    expected = parse_record({"messages": messages, "tools": TOOLS}, {})
    for write in (json.dumps, repr, lambda value: json.dumps(value, indent=1)):
        assert parse_record({"messages": write(messages), "tools": write(TOOLS)}, {}) == expected
        assert parse_record({"conversations": write(SHAREGPT)}, {}) == Conversation([USER, ANSWER])
        each = {"messages": messages, "tools": list(map(write, TOOLS))}
        assert parse_record(each, {}) == expected
        history = {"instruction": "q", "output": "a", "history": write([["b", "c"]])}
        assert [m["content"] for m in parse_record(history, {}).messages] == ["b", "c", "q", "a"]
    for text in ("{", "[[", "[1", "__import__('os')", "(" * 10_000, "[" * 10_000, "[x]"):
        with pytest.raises(UserError, match=r"The value of messages (is not valid JSON|must be a list)"):
            parse_record({"messages": text}, {})


def test_a_bare_list_of_turns_is_a_conversation(load):
    assert parse_record([USER, ANSWER], {}) == parse_record(SHAREGPT, {}) == Conversation([USER, ANSWER])
    assert load([[USER, ANSWER], SHAREGPT])[0].examples == 2
    for record in ([], [1], [USER, SHAREGPT[0]]):
        with pytest.raises(UserError, match="must be an object with fields, not list"):
            parse_record(record, {})


def test_fields_are_found_inside_others():
    record = {"data": {"turns": [USER, ANSWER], "sys": "s"}, "meta": json.dumps({"q": "question", "a": "answer"})}
    found = parse_record(record, {"messages": "data.turns"}, "s")
    assert found == Conversation([{"role": "system", "content": "s"}, USER, ANSWER])
    assert parse_record(record, {"prompt": "meta.q", "completion": "meta.a"}) == Passage("question", "answer")
    assert parse_record(record, {"prompt": "data.sys", "completion": "data.turns.1.content"}) == Passage("s", "a")
    with pytest.raises(UserError, match=r"no field 'data\.turn', only data, meta"):
        parse_record(record, {"messages": "data.turn"})


def test_a_renamed_field_that_only_some_records_have_is_missing_in_the_others(load):
    records = [{"q": "q0", "a": "a0", "more": "m"}, {"q": "q1", "a": "a1"}]
    fields = {"instruction": "q", "output": "a", "input": "more"}
    assert parse_record(records[1], fields) == parse_record({"instruction": "q1", "output": "a1"}, {})
    assert len(load(records, fields=fields)[1]) == 2
    with pytest.raises(UserError, match=r"No record of .*a\.jsonl has the field 'mor' that its fields give as input"):
        load(records, fields={**fields, "input": "mor"})


def test_prompt_and_completion_may_be_messages_as_json():
    prompt, completion = json.dumps([USER]), json.dumps([ANSWER])
    assert parse_record({"prompt": prompt, "completion": completion}, {}) == Conversation([USER, ANSWER])
    for record in ({"prompt": prompt, "completion": "a"}, {"prompt": "[1]", "completion": completion}):
        assert parse_record(record, {}) == Passage(record["prompt"], record["completion"])


def test_calls_in_all_their_shapes_are_the_same():
    function = CALL["function"]
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    for shape in (
        {"tool_calls": [CALL]},
        {"tool_calls": CALL},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": [{**CALL, "function": {**function, "arguments": json.dumps(function["arguments"])}}]},
        {"function_call": {"name": "weather", "arguments": '{"city": "Bern"}'}},
    ):
        parsed = parse_record({"messages": [USER, {"role": "assistant", "content": None, **shape}]}, {})
        assert parsed.messages[1]["tool_calls"][0]["function"] == answer["tool_calls"][0]["function"]
        assert "function_call" not in parsed.messages[1]
    turns = [
        SHAREGPT[0],
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "r"},
    ]
    assert parse_record({"conversations": [*turns, SHAREGPT[1]]}, {}).messages[2] == {"role": "tool", "content": "r"}
    for result in ({"sunny": True}, [1, 2], 5):
        messages = [USER, {"role": "tool", "content": result}, ANSWER]
        assert json.loads(parse_record({"messages": messages}, {}).messages[1]["content"]) == result


NAMES = [
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "prompt",
    "completion",
    "tool_calls",
    "function",
    "name",
    "weight",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "text", "tools"]), v, max_size=4),
    max_leaves=10,
)


@given(JSON)
@settings(deadline=None, max_examples=60)
def test_any_json_is_a_record_or_refused_in_one_sentence(value):
    before = copy.deepcopy(value)
    try:
        parse_record(value, {})
    except UserError as error:
        assert "\n" not in str(error) and str(error).endswith((".", "?"))
    assert repr(value) == repr(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the weather in Bern is sunny and the cat sat on the mat"] * 5, 280, progress=False)


@functools.cache
def _template(source: str) -> ChatTemplate:
    """One process for each template of this file."""
    return ChatTemplate(source, {"eos_token": EOS})


@pytest.fixture(scope="module")
def load(tmp_path_factory, tokenizer):
    """Encode records: the report, and of each example its stretches of equal weight, decoded."""
    path = tmp_path_factory.mktemp("load") / "a.jsonl"

    def load(records, template=CHATML, fields=None, **values):
        path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
        config = SftConfig(sources={"a": {"path": str(path), "fields": fields or {}}}, **values)
        encoder = Encoder(config, tokenizer, EncodingReport(), _template(template), _template(template))
        examples = list(encoder.encode_source("a", config.sources["a"], False))
        return encoder.report, [_stretches(tokenizer, ids, weights) for _, ids, weights in examples]

    return load


def _stretches(tokenizer, ids, weights) -> list[tuple[str, float]]:
    edges = [0, *(np.flatnonzero(np.diff(weights)) + 1), len(ids)]
    pairs = itertools.pairwise(edges)
    return [(tokenizer.decode(ids[a:b], keep_special=True), float(weights[a])) for a, b in pairs]


def _chat(*weights, name="weight"):
    """A turn of the assistant for each weight; none where it is None."""
    messages = []
    for number, weight in enumerate(weights):
        mark = {} if weight is None else {name: weight}
        messages += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}", **mark}]
    return {"messages": messages}


@pytest.mark.parametrize("name", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("values", [(1, 0), (True, False), ("1", "0"), ("true", "False"), (1.0, 0.0)])
def test_turns_that_are_marked_are_not_learned(load, tokenizer, name, values):
    yes, no = values
    record = _chat(no, yes, no, None, name=name)
    shared = [
        {"from": m["role"], "value": m["content"], **{k: m[k] for k in (name,) if k in m}} for m in record["messages"]
    ]
    for shape in (record, {"conversations": shared}):
        assert [text for text, weight in load([shape])[1][0] if weight == 1] == [f"a1{EOS}", f"a3{EOS}"]
    assert [text for text, weight in load([record], loss="completion")[1][0] if weight] == [f"a3{EOS}"]
    assert [text for text, weight in load([record], loss="all")[1][0] if not weight] == [f"a0{EOS}", f"a2{EOS}"]


@given(weights=st.lists(st.none() | st.sampled_from([0, 0.25, 0.5, 1]), min_size=1, max_size=4).filter(any))
@settings(deadline=None, max_examples=15)
def test_each_turn_is_learned_by_its_weight(load, tokenizer, weights):
    report, (pieces,) = load([_chat(*weights)])
    filled = [1.0 if weight is None else weight for weight in weights]
    assert {text: weight for text, weight in pieces if weight} == {
        f"a{n}{EOS}": weight for n, weight in enumerate(filled) if weight
    }
    assert report.learned == sum(len(tokenizer.encode(f"a{n}")) + 1 for n, w in enumerate(filled) if w)


def test_weights_reach_the_rows(tmp_path, tokenizer):
    (tmp_path / "a.json").write_text(json.dumps([_chat(0.5, 0), _chat(1)]))
    sources = {"a": {"path": str(tmp_path / "a.json")}}
    config = SftConfig(sources=sources, validation_fraction=0.0, chat_template="plain", sequence_length=256)
    store = load_examples(config, tokenizer, progress=False).train.stores["a"]
    row = PackedRows(store, 256, "best_fit", seed=None)[0]
    assert row["loss_weights"].dtype == np.float32
    assert sorted(set(row["loss_weights"].tolist())) == [0, 0.5, 1]


def test_records_without_a_turn_to_learn_are_left_out_and_counted(load):
    report, _ = load([_chat(1), _chat(0), _chat(0, 0)])
    assert (report.examples, report.skipped) == (1, {"marked as not to be learned": 2})
    assert load([_chat(0, None), _chat(None, 0)], loss="completion")[0].examples == 1


def test_marks_that_cannot_be_followed_are_told(load):
    for value in (2, -1, "maybe", [1], {"a": 1}):
        with pytest.raises(UserError, match=r"line 1: Message 2 has the weight .* must be true, false or from 0 to 1"):
            load([_chat(value)])
    marked = {"messages": [{**USER, "weight": 1}, ANSWER]}
    assert "1 mark turns of others than the assistant" in str(load([marked])[0])
    with pytest.raises(UserError, match=r"line 1: .*which data\.loss=all does not take"):
        load([{"messages": [{**USER, "weight": 0}, ANSWER]}], loss="all")
    with pytest.raises(UserError, match="has a train_detail"):
        load([{"messages": [USER, {**ANSWER, "train_detail": [{"begin_offset": 0}]}]}])
    blocks = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    with pytest.raises(UserError, match="marks 1 stretches of text for the 2 messages"):
        load([_chat(0, 1)], template=blocks)


def _call(content=None, **record):
    answer = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "sunny"}
    return {"messages": [{"role": "user", "content": "the weather"}, answer, result, ANSWER], **record}


WRITES_NO_CALLS = WITH_TOOLS.replace("m.tool_calls or []", "[]")
WRITES_NAMES = WITH_TOOLS.replace("call.function | tojson", "call.function.name")
WRITES_NO_RESULTS = WITH_TOOLS.replace("m.content }}", "(m.content if m.role != 'tool' else '') }}")


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (CHATML, "the tool calls of message 2"),
        (PLAIN_TEMPLATE, "the tool calls of message 2"),
        (WRITES_NO_CALLS, "the tool calls of message 2"),
        (WRITES_NAMES, "the arguments of the tool calls of message 2"),
        (WRITES_NO_RESULTS, "the content of message 3"),
    ],
)
@pytest.mark.parametrize("loss", ["assistant", "all"])
def test_calls_and_results_that_a_template_drops_are_refused(load, template, what, loss):
    with pytest.raises(UserError, match=rf"line 1: The chat template does not write {what}: set data\.chat_template"):
        load([_call(tools=TOOLS)], loss=loss, template=template)
    report, _ = load([_call(tools=TOOLS), _chat(1)], loss=loss, on_invalid="skip", template=template)
    assert (report.examples, sum(report.skipped.values())) == (1, 1)


def test_calls_that_are_written_are_learned(load):
    report, (pieces,) = load([_call(tools=TOOLS)], template=WITH_TOOLS)
    learned = [text for text, weight in pieces if weight]
    assert "weather" in learned[0] and "Bern" in learned[0] and learned[1] == f"a{EOS}"
    assert not report.unwritten


def test_what_else_a_template_drops_is_counted(load):
    system = {"role": "system", "content": "s"}
    without = WITH_TOOLS.replace("m.content }}", "(m.content if m.role != 'system' and not m.tool_calls else '') }}")
    without = without.replace("{% if tools %}", "{% if false %}")
    told = _call("I look it up.", tools=TOOLS)
    records = [told, {"messages": [system, USER, {**ANSWER, "reasoning_content": "r"}]}, _chat(1), _chat(None)]
    report, _ = load(records, template=without)
    assert report.examples == 4
    assert report.unwritten == {"a list of tools": 1, "text beside tool calls": 1, "a system prompt": 1, "reasoning": 1}
    assert "1 have a system prompt that the chat template does not write" in str(report)
    assert not load([records[0]], template=WITH_TOOLS)[0].unwritten


def test_records_with_tools_are_written_by_the_template_for_them(tmp_path, tokenizer):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": WITH_TOOLS}]
    (tmp_path / "a.json").write_text(json.dumps([_call(tools=TOOLS), _chat(1)]))
    config = SftConfig(sources={"a": {"path": str(tmp_path / "a.json")}}, validation_fraction=0.0)
    tokenizer.settings["chat_template"] = named
    try:
        store = load_examples(config, tokenizer, progress=False).train.stores["a"]
    finally:
        del tokenizer.settings["chat_template"]
    both = [np.array([n]) for n in range(2)]
    texts = [tokenizer.decode(store.pieces(n, np.zeros(1, int), store.lengths[n]), keep_special=True) for n in both]
    assert ["<|call|>" in text for text in texts] == ["<|tools|>" in text for text in texts] == [True, False]
