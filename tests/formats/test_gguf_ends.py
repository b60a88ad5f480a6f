"""Ends, beginnings and settings of GGUF files: keys, what llama.cpp takes for granted, what our files say besides."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import tokenizers

from slmjax.errors import UserError
from slmjax.formats.gguf.ends import corrected_types, settings_from, settings_to, stop_ids_from, stop_ids_to
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.keys import Keys
from slmjax.formats.gguf.model import load_gguf, save_gguf
from slmjax.formats.gguf.tokenizer import tokenizer_from, tokenizer_to
from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.backends import HuggingFaceBackend
from slmjax.tokenization.tokenizer import Tokenizer

ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|return|>", "</s>")
ENDS += ("<|call|>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<|flush|>", "<|calls|>")
ADD_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")


def tokenizer_of(*special: str, **settings) -> Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, special_tokens=["<|text|>"], show_progress=False, initial_alphabet=alphabet
    )
    made.train_from_iterator(["the river and the stone"] * 3, trainer)
    made.add_special_tokens(list(special))
    roles = {"bos_token": None, "eos_token": "<|text|>", "pad_token": None} | settings
    return Tokenizer(HuggingFaceBackend(made), roles)


def metadata_of(tokenizer: Tokenizer, stop_ids=None, **changed) -> dict:
    metadata = tokenizer_to(tokenizer, tokenizer.vocab_size)
    if stop_ids is not None:
        metadata |= stop_ids_to(stop_ids, tokenizer, metadata)
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def stops_of(metadata) -> set[int]:
    tokenizer = tokenizer_from(metadata, "f")
    return set(stop_ids_from(metadata, tokenizer, tokenizer.vocab_size, "f"))


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("kind", [sp.CONTROL, sp.NORMAL, sp.USER_DEFINED])
def test_a_token_that_ends_by_its_name(name, kind):
    """Whatever type a file gives it, and in our files too: llama.cpp stops there."""
    tokenizer = tokenizer_of(name)
    for stop_ids in (None, (0,)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metadata = metadata_of(tokenizer, stop_ids)
        id = tokenizer.token_to_id(name)
        metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"].copy()
        metadata["tokenizer.ggml.token_type"][id] = kind
        assert stops_of(metadata) == {0, id}
        again = tokenizer_from(metadata, "f")
        assert again.special_tokens()[name] == id
        assert id not in again.encode(f"the {name} river")  # text that quotes it stays text
        assert id in again.encode(f"the {name} river", allow_special=True)


def test_that_a_file_stops_elsewhere_is_told():
    tokenizer = tokenizer_of("<|im_end|>", *(f"<|e{i}|>" for i in range(4)))
    with pytest.warns(UserWarning, match=r"also stops at <\|im_end\|>"):
        metadata_of(tokenizer, (0,))
    ids = [tokenizer.token_to_id(f"<|e{i}|>") for i in range(4)]
    end = tokenizer.token_to_id("<|im_end|>")
    with pytest.warns(UserWarning, match=f"will not stop at the ids {ids[2]}, {ids[3]}"):
        metadata = metadata_of(tokenizer, (0, end, *ids))
    assert metadata["tokenizer.ggml.eot_token_id"], metadata["tokenizer.ggml.eom_token_id"] == ids[:2]
    assert stops_of(metadata) == {0, end, *ids}
    del metadata["slmjax.stop_ids"]
    assert stops_of(metadata) == {0, end, *ids[:2]}


def test_harmony_s_end_of_a_message_is_not_an_end():
    tokenizer = tokenizer_of("<|end|>", "<|return|>", "<|call|>")
    assert stops_of(metadata_of(tokenizer)) == {0, *(tokenizer.token_to_id(n) for n in ("<|return|>", "<|call|>"))}


def test_ends_of_filling_in_are_ends_of_other_writers_files():
    tokenizer = tokenizer_of("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>")
    ends = {tokenizer.token_to_id(name) for name in ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")}
    assert stops_of(metadata_of(tokenizer)) == {0, *ends}
    assert stops_of(metadata_of(tokenizer, (0,))) == {0}
    tokens, types = ["<|fim_prefix|>", "x"], [sp.NORMAL, sp.NORMAL]
    assert corrected_types({}, tokens, types) == [sp.CONTROL, sp.NORMAL]
    assert corrected_types({"slmjax.stop_ids": np.zeros(1, np.int32)}, tokens, types) == types


@pytest.mark.parametrize("pre", [*ADD_BOS, "qwen2", "gpt-2", "default"])
def test_the_pre_tokenizer_says_whether_bos_begins(pre):
    tokenizer = tokenizer_of(bos_token="<|text|>")
    metadata = metadata_of(tokenizer, pre=pre, add_bos_token=None)
    try:
        again = tokenizer_from(metadata, "f")
    except UserError:
        pytest.skip("the pre-tokenizer is not read here")
    assert again.settings["add_bos_token"] is (pre in ADD_BOS)
    metadata = metadata_of(tokenizer, pre=pre, add_bos_token=False)
    assert tokenizer_from(metadata, "f").settings["add_bos_token"] is False


def test_settings_of_others_and_ours():
    theirs = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.1}
    expected = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    float32 = {key: float(np.float32(v)) if isinstance(v, float) else v for key, v in theirs.items()}
    assert settings_from(float32, "f") == expected and settings_from({}, "f") == {}
    ours = settings_to(expected | {"stop_strings": ["ä"]})
    assert settings_from(ours, "f") == expected | {"stop_strings": ["ä"]}
    assert {key: ours[key] for key in theirs} == theirs
    assert not [key for key in settings_to({"temperature": 0.6}) if key.startswith("general")]  # greedy: none
    for text in ("{", "[]", '{"x": 1e999}'):
        with pytest.raises(UserError, match=r"slmjax\.generation_config"):
            settings_from({"slmjax.generation_config": text}, "f")


def test_a_vocabulary_of_llama_s_kind_has_its_ids():
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a", "▁b"]}
    keys |= {"tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1], np.int32)}
    keys |= {"tokenizer.ggml.scores": np.array([0, 0, 0, -1, -2], np.float32)}
    tokenizer = tokenizer_from(keys, "f")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2) and tokenizer.settings["add_bos_token"] is True
    plain = tokenizer_from(keys | {"tokenizer.ggml.token_type": np.array([2, 1, 1, 1, 1], np.int32)}, "f")
    assert plain.settings["bos_token"] is None  # words like any other
    assert Keys(keys, "tokenizer.ggml", "f").text("model", "") == "llama"


def test_named_templates_and_settings_in_a_file(lm, tmp_path):
    templates = [{"name": n, "template": f"{{{{ messages }}}}{n}"} for n in ("default", "tool_use", "rag-2")]
    settings = {**lm.tokenizer.settings, "chat_template": templates}
    tokenizer = Tokenizer(lm.tokenizer._backend, settings)
    own = dataclasses.replace(lm, tokenizer=tokenizer, generation={"do_sample": True, "temperature": 0.5})
    path = save_gguf(own, tmp_path / "m.gguf", dtype="float32")
    metadata = open_gguf(path).metadata
    assert metadata["tokenizer.chat_template"] == templates[0]["template"]
    assert metadata["tokenizer.chat_template.tool_use"] == templates[1]["template"]
    assert metadata["tokenizer.chat_templates"] == ["tool_use", "rag-2"]
    again = load_gguf(path)
    assert [t["name"] for t in again.tokenizer.settings["chat_template"]] == ["default", "tool_use", "rag-2"]
    assert (again.stop_ids, again.generation) == (own.stop_ids, own.generation)
    assert json.loads(metadata["slmjax.generation_config"]) == own.generation
