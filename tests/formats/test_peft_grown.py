"""Adapters that change more than products: new tokens, whole modules under peft's names, biases, their own tokenizer.

Without peft; tests/parity/test_peft_grown.py holds them against peft itself.
"""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import slmjax
from slmjax.errors import UserError
from slmjax.formats.adapters.door import read_adapter, save_as_peft
from slmjax.formats.huggingface.export import save_huggingface

PREFIX = "base_model.model."
TABLE, HEAD = "model.embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def tied(lm):
    config = dataclasses.replace(lm.config, tie_embeddings=True)
    return dataclasses.replace(lm, config=config, params={k: v for k, v in lm.params.items() if k != "lm_head"})


@pytest.fixture(scope="module")
def bases(lm, tied, tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    return {"untied": save_huggingface(lm, place / "untied"), "tied": save_huggingface(tied, place / "tied")}


def write(directory, base, tensors, **config):
    directory.mkdir()
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 2}
    values |= {"lora_alpha": 4, "target_modules": ["q_proj"]} | config
    (directory / "adapter_config.json").write_text(json.dumps(values))
    save_file({PREFIX + name: x for name, x in tensors.items()}, directory / "adapter_model.safetensors")
    return directory


def lora_of_q(layers=3, bias=False, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for i in range(layers):
        at = f"model.layers.{i}.self_attn.q_proj.lora_"
        tensors |= {f"{at}A.weight": rng.standard_normal((2, 32)), f"{at}B.weight": rng.standard_normal((32, 2))}
        tensors |= {f"{at}B.bias": rng.standard_normal(32)} if bias else {}
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def rows(count, seed=1, width=32):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def table_of(lm):
    return np.asarray(lm.params["embedder"]["embedding"])


def head_of(lm):
    return table_of(lm) if lm.config.tie_embeddings else np.asarray(lm.params["lm_head"]["kernel"]).T


@pytest.mark.parametrize("names", ["plain", "saved", "both", "default"])
def test_whole_modules_under_each_of_peft_s_names(lm, bases, tmp_path, names):
    table, head, original = rows(264), rows(264, 2), rows(264, 3)
    tensors = lora_of_q()
    for module, x in ((TABLE, table), (HEAD, head)):
        tensors |= {f"{module}.weight": x} if names in ("plain", "both") else {}
        tensors |= {f"{module}.modules_to_save.weight": x} if names in ("saved", "both") else {}
        tensors |= {f"{module}.modules_to_save.default.weight": x} if names == "default" else {}
        tensors |= {f"{module}.original_module.weight": original} if names != "plain" else {}
    made = slmjax.load(write(tmp_path / "a", bases["untied"], tensors, modules_to_save=["embed_tokens", "lm_head"]))
    np.testing.assert_array_equal(table_of(made), table)
    np.testing.assert_array_equal(head_of(made), head)


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("size", [270, 260])
def test_a_grown_vocabulary_on_the_plain_base(bases, tmp_path, kind, size):
    """peft's user resizes the base first; here the adapter's own rows say how many tokens there are."""
    table, head = rows(size), rows(size, 2) if kind == "untied" else rows(size)
    tensors = lora_of_q() | {f"{TABLE}.weight": table, f"{HEAD}.weight": head}
    made = slmjax.load(write(tmp_path / "a", bases[kind], tensors))
    assert made.config.vocab_size == size and made.config.tie_embeddings is (kind == "tied")
    np.testing.assert_array_equal(table_of(made), table)
    np.testing.assert_array_equal(head_of(made), head)
    slmjax.save(made, tmp_path / "merged", format="huggingface")
    assert slmjax.load(tmp_path / "merged").config.vocab_size == size
    again = save_as_peft(read_adapter(tmp_path / "a", slmjax.load), tmp_path / "again")
    np.testing.assert_array_equal(table_of(slmjax.load(again)), table)


def test_a_tied_table_alone_is_followed_by_its_head_where_it_grew(tied, bases, tmp_path):
    made = slmjax.load(write(tmp_path / "a", bases["tied"], lora_of_q() | {f"{TABLE}.weight": rows(270)}))
    assert made.config.tie_embeddings and made.config.vocab_size == 270
    made = slmjax.load(write(tmp_path / "b", bases["tied"], lora_of_q() | {f"{TABLE}.weight": rows(264)}))
    assert not made.config.tie_embeddings  # peft trained the table alone
    np.testing.assert_array_equal(head_of(made), table_of(tied))


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("listed", ["list", "dict", "own type"])
def test_single_tokens_are_replaced(lm, tied, bases, tmp_path, kind, listed):
    ids, new = [3, 7], rows(2)
    base = table_of(lm if kind == "untied" else tied)
    if listed == "own type":
        tensors = {f"{TABLE}.trainable_tokens_delta": new}
        config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": ids, "target_modules": ["embed_tokens"]}
        config |= {"r": None, "lora_alpha": None}
    else:
        tensors = lora_of_q() | {f"{TABLE}.token_adapter.trainable_tokens_delta": new}
        config = {"trainable_token_indices": ids if listed == "list" else {"embed_tokens": ids}}
    made = slmjax.load(write(tmp_path / "a", bases[kind], tensors, **config))
    expected = base.copy()
    expected[ids] = new
    np.testing.assert_array_equal(table_of(made), expected)
    np.testing.assert_array_equal(head_of(made), expected if kind == "tied" else head_of(lm))
    assert made.config.tie_embeddings is (kind == "tied")


def test_single_tokens_of_a_grown_table(bases, tmp_path):
    table, new = rows(266), rows(2, 5)
    tensors = lora_of_q() | {f"{TABLE}.token_adapter.trainable_tokens_delta": new}
    tensors |= {f"{TABLE}.token_adapter.base_layer.weight": table}
    made = slmjax.load(write(tmp_path / "a", bases["tied"], tensors, trainable_token_indices=[264, 265]))
    np.testing.assert_array_equal(table_of(made), np.concatenate([table[:264], new]))
    assert made.config.tie_embeddings


@pytest.mark.parametrize(
    ("tensors", "config", "match"),
    [
        ({f"{TABLE}.token_adapter.trainable_tokens_delta": rows(2)}, {}, "trainable_token_indices"),
        ({f"{TABLE}.token_adapter.trainable_tokens_delta": rows(2)}, {"trainable_token_indices": [1]}, "there, .*here"),
        ({f"{TABLE}.token_adapter.trainable_tokens_delta": rows(1)}, {"trainable_token_indices": [264]}, "token 264"),
        ({f"{TABLE}.token_adapter.trainable_tokens_delta": rows(1)}, {"trainable_token_indices": ["x"]}, "token ids"),
        ({f"{TABLE}.weight": rows(270)}, {}, "only it is given"),
        ({f"{TABLE}.weight": rows(270), f"{HEAD}.weight": rows(271)}, {}, "270 in .* and 271 in lm_head"),
        ({f"{TABLE}.weight": rows(270, width=31), f"{HEAD}.weight": rows(270, width=31)}, {}, "another base"),
    ],
)
def test_what_does_not_fit_is_one_sentence(bases, tmp_path, tensors, config, match):
    with pytest.raises(UserError, match=match) as error:
        slmjax.load(write(tmp_path / "a", bases["untied"], lora_of_q() | tensors, **config))
    assert "\n" not in str(error.value)


def test_biases_that_the_base_has_not(lm, bases, tmp_path):
    """lora_bias: B adds a bias times the scale; the network that is made has one, and so has what is written."""
    tensors = lora_of_q(bias=True)
    adapter = write(tmp_path / "a", bases["untied"], tensors, lora_bias=True)
    made = slmjax.load(adapter)
    assert made.config.qkv_bias
    block = made.params["segment_0"]["block_0"]["attention"]
    for i in range(3):
        bias = tensors[f"model.layers.{i}.self_attn.q_proj.lora_B.bias"]
        np.testing.assert_allclose(block["q_proj"]["bias"][i], 2.0 * bias, rtol=1e-6)  # alpha / r
        assert not np.any(block["k_proj"]["bias"][i])
    again = save_as_peft(read_adapter(adapter, slmjax.load), tmp_path / "again")
    written = load_file(again / "adapter_model.safetensors")
    assert json.loads((again / "adapter_config.json").read_text())["lora_bias"] is True
    assert written.keys() == {PREFIX + name for name in tensors}
    for name, x in tensors.items():
        np.testing.assert_allclose(written[PREFIX + name], x, rtol=1e-6, err_msg=name)


def own_tokenizer(lm):
    tokenizer = copy.copy(lm.tokenizer)
    tokenizer.settings = {**tokenizer.settings, "chat_template": "{{ own }}", "eos_token": "the"}
    return type(tokenizer)(tokenizer._backend, tokenizer.settings)


def test_a_tokenizer_of_its_own(lm, bases, tmp_path):
    adapter = write(tmp_path / "a", bases["untied"], lora_of_q())
    own = own_tokenizer(lm)
    own.save(adapter)
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "do_sample": True}))
    made = slmjax.load(adapter)
    assert made.tokenizer.settings["chat_template"] == "{{ own }}" and made.tokenizer.eos_id == own.eos_id
    assert set(made.stop_ids) == {*lm.stop_ids, own.eos_id, 9} and made.generation["do_sample"] is True
    slmjax.save(made, tmp_path / "merged", format="huggingface")
    merged = slmjax.load(tmp_path / "merged")
    assert merged.tokenizer.settings["chat_template"] == "{{ own }}" and merged.stop_ids == made.stop_ids
    again = save_as_peft(read_adapter(adapter, slmjax.load), tmp_path / "again")
    assert slmjax.load(again).tokenizer.settings["chat_template"] == "{{ own }}"


def test_a_template_of_its_own_alone(lm, bases, tmp_path):
    adapter = write(tmp_path / "a", bases["untied"], lora_of_q())
    (adapter / "chat_template.jinja").write_text("{{ own }}")
    made = slmjax.load(adapter)
    assert (
        made.tokenizer.settings["chat_template"] == "{{ own }}"
        and made.tokenizer.fingerprint == lm.tokenizer.fingerprint
    )
    assert lm.tokenizer.settings["chat_template"] != "{{ own }}" and made.stop_ids == lm.stop_ids


def test_names_that_a_compiled_model_left(lm, bases, tmp_path):
    plain = slmjax.load(write(tmp_path / "a", bases["untied"], lora_of_q()))
    wrapped = {f"_orig_mod.{name}": x for name, x in lora_of_q().items()}
    made = slmjax.load(write(tmp_path / "b", bases["untied"], wrapped))
    jax.tree.map(np.testing.assert_array_equal, made.params, plain.params)
