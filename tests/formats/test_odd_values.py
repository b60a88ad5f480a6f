"""Values of another type than meant, at every place of the JSON files that describe models, adapters and records."""

import copy
import dataclasses
import json

import pytest

from slmjax.data.conversations.records import parse_record
from slmjax.errors import UserError
from slmjax.formats import facts
from slmjax.formats.adapters.adapterhub import WEIGHTS, open_adapterhub
from slmjax.inference.description import description_from
from slmjax.models.config import ModelConfig
from slmjax.tokenization.chat_template import choose_template
from slmjax.tokenization.sentencepiece_proto import SentencePieceModel, parse_sentencepiece
from slmjax.tokenization.tokenizer import load_tokenizer
from slmjax.untrusted import inside, read_json

ODD = [
    None,
    True,
    0,
    -1,
    3,
    0.5,
    1e308,
    float("nan"),
    "",
    "x",
    "\ud800\n",
    [],
    [0],
    [[]],
    ["a"],
    {},
    {"a": 1},
    [{"a": []}],
]


def places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (key,)
        yield from ((key, *rest) for rest in places(item))


def changed_everywhere(value):
    """The value with each place of it replaced by each odd value."""
    for place in places(value):
        for odd in ODD:
            changed = copy.deepcopy(value)
            owner = changed
            for key in place[:-1]:
                owner = owner[key]
            owner[place[-1]] = odd
            yield changed


def answers(read, values):
    """How many are read and refused; any other exception is the test's failure."""
    counts = {"read": 0, "refused": 0}
    for value in values:
        try:
            read(value)
            counts["read"] += 1
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 2100
            counts["refused"] += 1
    return counts


def test_a_description_of_any_values_is_read_or_refused(tmp_path):
    model = ModelConfig(vocab_size=9, num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, ffn_dim=8).to_dict()
    model["rope_scaling"] = {"kind": "llama3", "factor": 2.0, "original_context_length": 64}
    peft = {"method": "lora", "base": "b", "lora": {"r": 2, "targets": ["q_proj"], "rank_pattern": [["q", 1]]}}
    values = {"version": 1, "kind": "run", "model": model, "peft": peft, "stop_ids": [0], "total_steps": 9}

    def read(changed):
        description = description_from(changed, tmp_path / "slmjax.json")
        facts.describe_network(description.model)
        facts.describe_costs(description.model, 1, 9)

    counts = answers(read, changed_everywhere(values))
    assert counts["read"] > 50 and counts["refused"] > 500


@pytest.mark.parametrize(
    "record",
    [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "f"}'}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"instruction": "a", "input": "b", "output": "c", "history": [["a", "b"]], "system": "s", "tools": [{}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}]},
    ],
)
def test_a_record_of_any_values_is_read_or_refused(record):
    counts = answers(lambda changed: parse_record(changed, {}), changed_everywhere(record))
    assert counts["read"] and counts["refused"]


def test_an_adapter_of_any_values_is_refused_in_a_sentence(tmp_path):
    config = {"reduction_factor": 16, "non_linearity": "relu", "leave_out": [], "scaling": 1.0, "mh_adapter": True}
    values = {"config": config | {"original_ln_before": False}, "name": "x", "model_name": "base"}
    (tmp_path / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")
    counts = answers(lambda changed: open_adapterhub(tmp_path, changed), changed_everywhere(values))
    assert counts["read"] == 0 and counts["refused"] > 50


def test_named_templates_of_any_values():
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    for changed in changed_everywhere(named):
        assert choose_template(changed) in (None, "", "a", "x", "\ud800\n")


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "WordPiece"])
def test_a_token_with_an_id_beyond_any_vocabulary_is_refused_at_once(tmp_path, kind):
    """The library counts up to the largest id when it writes: here to two thousand millions."""
    model = {"type": kind, "vocab": {"a": 0, "[UNK]": 1, "b": 2**31}, "unk_token": "[UNK]", "merges": []}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9} if kind == "WordPiece" else {}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(UserError, match="'b' the id 2,147,483,648, beyond any vocabulary"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_its_unknown_token_is_told_when_a_text_needs_it(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a") == [0]
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match="tokenizer's file cannot be used"):
            encode("b")


def test_a_piece_that_is_not_utf8_is_refused(tmp_path):
    pieces = SentencePieceModel(["<unk>", "a", "bc"], [0.0, -1.0, -2.0], [2, 1, 1]).to_bytes()
    (tmp_path / "tokenizer.model").write_bytes(pieces.replace(b"bc", b"b\xab"))
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("charsmap", [b"\0", b"\xff" * 64, (2**31).to_bytes(4, "little") + b"abcd"])
def test_a_map_of_characters_of_another_size_than_it_says_is_refused(charsmap):
    """tokenizers takes as much memory as the map says before it looks at it."""
    sound = SentencePieceModel(["<unk>", "a"], [0.0, -1.0], [2, 1], charsmap=b"\4\0\0\0abcd")
    assert parse_sentencepiece(sound.to_bytes()).charsmap == sound.charsmap
    with pytest.raises(UserError, match="damaged: its map of characters has another size"):
        parse_sentencepiece(dataclasses.replace(sound, charsmap=charsmap).to_bytes())


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200, "a\0b", "..", "a/b", ""])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="plain name"):
        inside(tmp_path, name)


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character(tmp_path):
    path = tmp_path / "a.json"
    for text in ('{"a": "\\ud83d"}', '{"\\uDE42": 1}', '{"a": [{"b": "x\\ud800y"}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="half of a surrogate pair"):
            read_json(path)
    path.write_text('{"a": "\\ud83d\\ude42"}')
    assert read_json(path) == {"a": "🙂"}


def test_a_sentence_that_quotes_a_file_stays_one_short_line():
    said = str(UserError(f"The key {json.dumps('x')} is 'a\n\x1b[2J\ud800{'y' * 9000}' here."))
    assert said.isprintable() and len(said) < 2100 and said.startswith('The key "x" is \'a \\x1b[2J\\ud800yy')
    assert said.endswith("y' here.")
