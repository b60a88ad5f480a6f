"""Rows in the order of neighbours, gains of each head's own, GGUF architectures that are read alone."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from slmjax.errors import UserError
from slmjax.formats.entries import interleaved
from slmjax.formats.gguf.architectures import ROUNDING, config_from, config_to, entries_of, read_back, written_as
from slmjax.formats.gguf.archs import BY_NAME, EQUAL
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.model import load_gguf, save_gguf
from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import family_for
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.formats.weight_map import Leaf, as_is, transposed, write_tensors
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig, rope_fraction
from slmjax.models.families.registry import model_config
from tests.formats.test_families import tensors_of
from tests.formats.test_gguf_models import MINIATURES, small_tokenizer

SIZE = {"vocab_size": 11, "num_layers": 1, "embed_dim": 8, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 16}


@pytest.mark.parametrize("rotated", [2, 4, 6])
@pytest.mark.parametrize("name", ["q_proj/kernel", "k_proj/bias", "q_norm/scale"])
def test_neighbours_become_halves_and_neighbours_again(name, rotated):
    """Of every head the even rotated dimensions before the odd, the rest as it was; nothing is lost."""
    K, heads = 6, 1 if "norm" in name else 3
    config = ModelConfig(**SIZE | {"head_dim": K, "rope_fraction": rope_fraction(rotated, K)})
    leaf = Leaf(f"segment_0/block_0/attention/{name}", 0)
    entry = transposed("x", leaf) if name.endswith("kernel") else as_is("x", leaf)
    (turned,) = interleaved(config, [entry])
    rows = np.arange(heads * K).reshape(heads, K)
    file = np.stack([rows.reshape(-1)] * 2, axis=1) if name.endswith("kernel") else rows.reshape(-1)
    (ours,) = turned.split(file)
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, K)]
    np.testing.assert_array_equal((ours if ours.ndim == 1 else ours[0]).reshape(heads, K), rows[:, order])
    np.testing.assert_array_equal(turned.join([ours]), file)


def test_values_and_other_products_keep_their_order():
    config = ModelConfig(**SIZE)
    entries = [
        transposed("x", Leaf(f"segment_0/block_0/{at}/kernel", 0)) for at in ("attention/v_proj", "attention/o_proj")
    ]
    assert interleaved(config, entries) == entries


def test_a_share_of_a_head_is_never_one_dimension_short():
    """int(K * (R / K)) is R - 1 for some, as 46 and 26."""
    for head_dim in range(2, 260, 2):
        for rotated in range(2, head_dim + 1, 2):
            assert int(head_dim * rope_fraction(rotated, head_dim)) == rotated
            assert rope_fraction(rotated, head_dim) <= 1


def test_a_gain_for_each_head_has_a_row_for_it():
    config = FAMILIES["cohere"].config_from({**HUGGING_FACE, "use_qk_norm": True})
    entries = {entry.name: entry for entry in FAMILIES["cohere"].entries(config)}
    rows = np.arange(4 * 2).reshape(4, 2)
    entry = entries["model.layers.0.self_attn.q_norm.weight"]
    (ours,) = entry.split(rows)
    assert ours.shape == (8,)
    np.testing.assert_array_equal(entry.join([ours]), rows)
    with pytest.raises(ValueError, match="q_norm"):
        entry.split(rows.T)


HUGGING_FACE = {"vocab_size": 11, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 4}
HUGGING_FACE |= {"num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}


@pytest.mark.parametrize("arch", EQUAL, ids=lambda arch: arch.name)
def test_an_architecture_that_is_read_alone_is_an_equal_one(arch):
    """A file of it reads as the network that is written under another name."""
    config = ModelConfig(**MINIATURES["llama"][1])
    model = written_as(config, arch)
    assert model.metadata["general.architecture"] == arch.name
    assert read_back(config, model).differences(config) == {}
    assert config_to(config).metadata["general.architecture"] != arch.name


def shapes_of(config, model):
    return {entry.name: () for entry in model.entries} | {"token_embd.weight": (config.vocab_size, config.embed_dim)}


@pytest.mark.parametrize("name", ["chatglm", "glm4"])
def test_one_product_of_queries_keys_and_values_is_cut_and_turned(name):
    """As older converters write GLM: attn_qkv, neighbours rotated."""
    config = ModelConfig(**MINIATURES[name][1])
    arch, model = BY_NAME[name], config_to(config)
    shapes = shapes_of(config, model) | {"blk.0.attn_qkv.weight": ()}
    fused = {e.name: e for e in entries_of(config, model.metadata, shapes, "it")}
    apart = {e.name: e for e in entries_of(config, model.metadata, {}, "it")}
    assert arch.interleaved and "blk.0.attn_qkv.bias" in fused and "blk.0.attn_q.weight" not in fused
    rng = np.random.default_rng(0)
    sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    parts = [rng.normal(size=(size, config.embed_dim)) for size in sizes]
    got = fused["blk.0.attn_qkv.weight"].split(np.concatenate(parts))
    for x, part, ours in zip("qkv", parts, got, strict=True):
        np.testing.assert_array_equal(ours, apart[f"blk.0.attn_{x}.weight"].split(part)[0])


@pytest.mark.parametrize("name", ["starcoder", "starcoder2", "mpt", "glm4", "command-r", "cohere2"])
def test_tensors_have_the_names_of_the_gguf_package(name):
    """Every tensor that we write is one that llama.cpp's own package lists for the architecture."""
    package = pytest.importorskip("gguf")
    config = ModelConfig(**MINIATURES[name][1])
    number = next(number for number, known in package.MODEL_ARCH_NAMES.items() if known == name)
    listed = {package.TENSOR_NAMES[tensor] for tensor in package.MODEL_TENSORS[number]}
    written = {re.sub(r"^blk\.\d+\.", "blk.{bid}.", e.name.rpartition(".")[0]) for e in config_to(config).entries}
    assert written <= listed


def test_an_mpt_without_alibi_is_refused():
    config = ModelConfig(**MINIATURES["mpt"][1])
    model = config_to(config)
    for value in (0.0, None):
        metadata = {**model.metadata, "mpt.attention.max_alibi_bias": value}
        with pytest.raises(UserError, match=r"mpt\.attention\.max_alibi_bias is not above 0"):
            config_from(metadata, shapes_of(config, model), model.constants.get, "model.gguf")


@pytest.mark.parametrize("name", ["tinystories-1m", "gpt-j-6b"])
def test_what_llama_cpp_has_no_architecture_for_is_refused_in_a_sentence(name):
    with pytest.raises(UserError, match=r"^GGUF has no architecture for this network.*in another format\.$"):
        config_to(model_config(name))


@pytest.mark.parametrize("scale", [0.0625, 0.125, 0.25, 0.3, 0.0833, 1 / 3, 7.0])
def test_a_scale_of_logits_comes_back_as_it_was_written(scale):
    family = FAMILIES["cohere"]
    assert family.config_to(family.config_from({**HUGGING_FACE, "logit_scale": scale}))["logit_scale"] == scale


def test_a_glm_and_its_norms_have_their_own_families():
    config = ModelConfig(**MINIATURES["glm4"][1])
    assert family_for(config).model_type == "glm4"
    assert family_for(dataclasses.replace(config, norm_placement="pre")).model_type == "glm"


SIZES = {"vocab_size": 288, "num_hidden_layers": 5, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64}
GPT = {"vocab_size": 288, "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64}
# model_type -> (its config, the architecture that a GGUF file of it has)
THROUGH_GGUF = {
    "gpt_bigcode": (GPT, "starcoder"),
    "starcoder2": ({**SIZES, "sliding_window": 8}, "starcoder2"),
    "mpt": ({"vocab_size": 288, "n_layers": 2, "d_model": 64, "n_heads": 4, "attn_config": {"clip_qkv": 6}}, "mpt"),
    "glm": (SIZES, "chatglm"),
    "glm4": ({**SIZES, "attention_bias": False}, "glm4"),
    "cohere": ({**SIZES, "logit_scale": 0.3}, "command-r"),
    "cohere2": ({**SIZES, "sliding_window": 8}, "cohere2"),
    "internlm2": ({**SIZES, "bias": False}, "llama"),
}


@pytest.mark.filterwarnings("ignore:llama.cpp ignores")
@pytest.mark.parametrize("model_type", THROUGH_GGUF)
def test_weights_come_back_from_gguf_to_the_bit(model_type, tmp_path):
    """Hugging Face's tensors, a GGUF file in float32, and the family's tensors of what is read from it."""
    values, arch = THROUGH_GGUF[model_type]
    family = FAMILIES[model_type]
    config, tensors = family.config_from(values), tensors_of(model_type, family.config_from(values))
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **values}))
    lm = LanguageModel(config=config, params=read_weights(open_huggingface(tmp_path)), tokenizer=small_tokenizer())
    path = save_gguf(lm, tmp_path / "model.gguf", dtype="float32")
    assert open_gguf(path).metadata["general.architecture"] == arch
    again = load_gguf(path)
    assert config.differences(again.config, ignore=ROUNDING, rel_tol=1e-6) == {}
    written = dict(write_tensors(again.params, family.entries(again.config)))
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
