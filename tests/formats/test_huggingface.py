"""Directories of Hugging Face: in and out bit for bit, both dialects, little memory, and none that lies."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slmjax.errors import UserError
from slmjax.formats.huggingface.directory import load_huggingface, open_huggingface
from slmjax.formats.huggingface.export import family_for, save_huggingface
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.formats.weight_map import read_params
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.models.families.registry import model_config
from slmjax.sharding.mesh import MeshConfig, make_mesh
from slmjax.sharding.rules import tree_shardings
from tests.tiny import initialized


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(saved, change):
    flat = load_file(saved / "model.safetensors")
    change(flat)
    save_file(flat, saved / "model.safetensors")


def assert_same_model(again, lm):
    assert again.config.layers == lm.config.layers and again.stop_ids == lm.stop_ids
    assert again.tokenizer.fingerprint == lm.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)


def test_what_is_saved_is_loaded_bit_for_bit(lm, saved):
    assert_same_model(load_huggingface(saved), lm)


def test_shards_are_loaded_bit_for_bit(lm, tmp_path):
    save_huggingface(lm, tmp_path / "m", max_shard_bytes=20_000)
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    assert_same_model(load_huggingface(tmp_path / "m"), lm)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_round_once(lm, saved, tmp_path, dtype):
    for params in (
        load_huggingface(saved, dtype=dtype).params,
        load_huggingface(save_huggingface(lm, tmp_path / "small", dtype=dtype)).params,
    ):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype)), params, lm.params)
    with pytest.raises(UserError, match="float8"):
        load_huggingface(saved, dtype="float8")


def test_both_dialects_and_all_stops_are_written(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"] == 10_000
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["model_type"] == "qwen3"
    assert (
        json.loads((saved / "generation_config.json").read_text())["eos_token_id"] == config["eos_token_id"] == [0, 7]
    )
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["chat_template"] == (saved / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_the_card_says_what_is_known(lm, tmp_path):
    save = lambda name, **known: (  # noqa: E731
        save_huggingface(lm, tmp_path / name, **known) / "README.md"
    ).read_text()
    known = save("a", license="apache-2.0", base_model="org/base")
    for said in (
        'license: "apache-2.0"',
        'base_model: "org/base"',
        "library_name",
        "text-generation",
        "| layers | 3 |",
    ):
        assert said in known
    assert "license" not in save("b") and "base_model" not in save("c")


def test_either_dialect_alone_is_read(lm, saved):
    for dropped in (("rope_parameters", "dtype"), ("rope_theta", "rope_scaling", "torch_dtype")):
        original = (saved / "config.json").read_text()
        edit(saved / "config.json", lambda values, dropped=dropped: [values.pop(key) for key in dropped])
        assert open_huggingface(saved).config.rope_theta == lm.config.rope_theta
        (saved / "config.json").write_text(original)


def test_only_a_model_of_transformers_is_replaced(lm, saved, tmp_path):
    save_huggingface(lm, saved, dtype="bfloat16")
    assert load_huggingface(saved).params["embedder"]["embedding"].dtype == jnp.bfloat16
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        save_huggingface(lm, saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        save_huggingface(lm, tmp_path / "file")


class Counted(np.ndarray):
    """Counts the bytes of the parts that are cut from it."""

    def __getitem__(self, index):
        part = super().__getitem__(index)
        Counted.bytes += part.nbytes
        return part


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2, "data": 2}])
def test_a_mesh_reads_each_part_once_and_nothing_twice(lm, saved, axes):
    place, mesh = open_huggingface(saved), make_mesh(MeshConfig(**axes))

    class File:
        shapes = place.tensors.shapes

        def read(self, name):
            return place.tensors.read(name).view(Counted)

    shardings = tree_shardings(lm.params, mesh)
    flat = {"/".join(k.key for k in path): s for path, s in jax.tree_util.tree_leaves_with_path(shardings)}
    Counted.bytes = 0
    params = read_params(place.config, place.family.entries(place.config), File(), shardings=flat)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    # Every leaf's first layer is looked at once more, for its shape.
    first = sum(leaf.nbytes // 3 for leaf in jax.tree.leaves({k: v for k, v in params.items() if "segment" in k}))
    assert stored <= Counted.bytes <= stored + first
    jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim) or pytest.fail(f"{a.sharding}"), params, shardings)
    jax.tree.map(np.testing.assert_array_equal, params, lm.params)
    again = load_huggingface(saved, mesh=mesh)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail("placed elsewhere"), again.params, params)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_load_takes_little_more_than_the_file(lm, saved, tmp_path, dtype):
    config = ModelConfig(vocab_size=264, num_layers=6, embed_dim=768, num_heads=12, ffn_dim=3072)
    script = f"""
import re, sys
import jax, jax.numpy as jnp
from slmjax.formats.huggingface.directory import load_huggingface, open_huggingface
def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1))
open_huggingface("{tmp_path / "large"}")
load_huggingface("{saved}")
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
params = load_huggingface("{tmp_path / "large"}").params
print(status("VmHWM") - before)
"""
    shapes = jax.eval_shape(lambda: _random(config))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    save_huggingface(
        LanguageModel(config=config, params=params, tokenizer=lm.tokenizer), tmp_path / "large", dtype=dtype
    )
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    ratio = int(result.stdout) / (tmp_path / "large" / "model.safetensors").stat().st_size
    assert 0.9 < ratio < 1.3


def _random(config):
    return initialized(config)


# hostile and broken


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen3x"}, "did you mean 'qwen3'"),
        ({"model_type": "zzzz"}, r"cannot be read: choose one of .*llama"),
        ({"model_type": None}, "model_type 'None'"),
        ({"model_type": ["qwen3"]}, "cannot be read"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2.* is not expected"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3.* is missing"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": 64}, "has shape"),
        ({"vocab_size": 265}, "has shape"),
        ({"num_attention_heads": 0}, "num_heads"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"hidden_act": {}}, "hidden_act is {}"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "'spiral'"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "not known"),
        ({"rope_scaling": [1]}, "must be an object"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": 1, "long_factor": [1]}}, "short_factor"),
        ({"rms_norm_eps": True}, "rms_norm_eps"),
        ({"use_sliding_window": True, "layer_types": ["chunked"] * 3, "sliding_window": 4}, "chunked"),
        ({"use_sliding_window": True, "layer_types": 7, "sliding_window": 4}, "layer_types"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_configs_that_cannot_be(saved, changes, said):
    edit(saved / "config.json", lambda values: values.update(changes))
    with pytest.raises(UserError, match=said):
        load_huggingface(saved)


def test_code_beside_the_weights_is_never_run(lm, saved):
    (saved / "modeling_evil.py").write_text("raise SystemExit('run')")
    auto_map = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    edit(saved / "config.json", lambda values: values.update(auto_map=auto_map))
    edit(saved / "tokenizer_config.json", lambda values: values.update(auto_map=auto_map))
    assert_same_model(load_huggingface(saved), lm)
    edit(saved / "config.json", lambda values: values.update(model_type="evil"))
    with pytest.raises(UserError, match="'evil'"):
        load_huggingface(saved)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"])
def test_no_file_of_the_directory_leads_out_of_it(saved, tmp_path, name):
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out"):
        load_huggingface(saved)


def test_what_the_weights_lack_or_have_too_much_is_named(saved):
    edit_weights(saved, lambda flat: flat.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        load_huggingface(saved)
    edit_weights(saved, lambda flat: flat.update({"model.norm.weight": np.ones(32, np.float32), "x": np.ones(1)}))
    with pytest.raises(UserError, match="x is not expected"):
        load_huggingface(saved)


def test_tables_that_are_no_parameters_are_left_alone(lm, saved):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    edit_weights(saved, lambda flat: flat.update(table))
    assert_same_model(load_huggingface(saved), lm)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_give_a_warning(saved, bad):
    edit_weights(saved, lambda flat: flat["model.layers.1.mlp.up_proj.weight"].__setitem__((0, 0), bad))
    with pytest.warns(UserWarning, match="up_proj/kernel hold NaN or infinity"):
        load_huggingface(saved)


def test_a_head_beside_tied_embeddings_counts_where_it_differs(lm, saved):
    edit(saved / "config.json", lambda values: values.update(tie_word_embeddings=True))
    with pytest.warns(UserWarning, match="kept apart"):
        assert_same_model(load_huggingface(saved), lm)
    edit_weights(saved, lambda flat: flat.update({"lm_head.weight": flat["model.embed_tokens.weight"]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_huggingface(saved).config.tie_embeddings


# which family says what


PUBLISHED = {
    "llama": [
        "llama-2-7b",
        "llama-3.2-1b",
        "tinyllama-1.1b",
        "smollm2-135m",
        "h2o-danube3-500m",
        "deepseek-coder-1.3b",
    ],
    "mistral": ["mistral-7b-v0.1", "h2o-danube-1.8b"],
    "qwen2": ["qwen1.5-0.5b", "qwen2.5-0.5b"],
    "qwen3": ["qwen3-0.6b"],
    "gemma": ["gemma-2b"],
    "gemma2": ["gemma-2-2b"],
    "gemma3_text": ["gemma-3-270m", "gemma-3-1b"],
    "smollm3": ["smollm3-3b"],
    "olmo2": ["olmo-2-1b"],
    "olmo3": ["olmo-3-7b"],
    "exaone4": ["exaone-4.0-1.2b"],
    "granite": ["granite-3.1-2b"],
}


@pytest.mark.parametrize(("family", "name"), [(f, name) for f, names in PUBLISHED.items() for name in names])
def test_a_named_model_is_written_as_its_own_family(family, name):
    assert family_for(model_config(name)).model_type == family


def test_longrope_is_phi_3s():
    scaling = RopeScaling("longrope", 16.0, 128, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4)
    config = ModelConfig(vocab_size=9, num_layers=1, embed_dim=32, num_heads=4, ffn_dim=8, context_length=2048)
    config = ModelConfig(**{**config.to_dict(), "rope_scaling": scaling})
    assert family_for(config, "phi3").model_type == "phi3"
    odd = ModelConfig(**{**config.to_dict(), "rope_scaling": RopeScaling(**{**vars(scaling), "factor": 3.0})})
    with pytest.raises(UserError, match="longrope"):
        family_for(odd, "phi3")


def test_what_no_family_can_say_is_named(lm):
    config = ModelConfig(**{**lm.config.to_dict(), "clip_qkv": 3.0, "norm_placement": "post"})
    with pytest.raises(UserError, match=r"cannot express .*model\.clip_qkv=3\.0"):
        family_for(config, "qwen3")
    with pytest.raises(UserError, match="No family of transformers"):
        family_for(config)
    with pytest.raises(UserError, match=r"llama cannot express this model: model\.qk_norm=head"):
        family_for(lm.config, "llama")


def test_every_family_survives_an_empty_and_a_nonsense_config():
    refused = (UserError, TypeError, ValueError, ArithmeticError, AttributeError)  # open_huggingface makes them one
    for family in FAMILIES.values():
        for values in ({}, {"hidden_size": None}, {"num_hidden_layers": []}, {"rope_parameters": 3}):
            with contextlib.suppress(*refused):
                family.config_from(values)
