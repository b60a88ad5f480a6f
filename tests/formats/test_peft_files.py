"""Hostile and mistaken adapter files are refused in a sentence; ours read back as what was written, without peft."""

import dataclasses
import json
from functools import cache, partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.formats.adapters.adapterhub import save_adapterhub
from slmjax.formats.adapters.door import Tuned, adapter_of, family_at, read_adapter, save_as_adapterhub, save_as_peft
from slmjax.formats.adapters.names import names_of
from slmjax.formats.huggingface.export import save_huggingface
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import make_method
from slmjax.sharding.mesh import MeshConfig, make_mesh

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS = np.arange(12, dtype=np.int32)[None]
Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


def tuned_from(lm, base, **peft):
    """A fine-tune of the model at `base`, its numbers off their start."""
    config = PeftConfig(**peft)
    method = make_method(config, Transformer(lm.config))
    trained, frozen = quick_jit(method.split)(lm.params, jax.random.key(0))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), trained)
    return Tuned(adapter_of(config, method, moved, frozen), lm, str(base), family_at(str(base), lm.config, []))


@pytest.fixture(scope="module")
def base(lm, tmp_path_factory):
    return save_huggingface(lm, tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def tuned(lm, base):
    return tuned_from(lm, base, method="lora", lora={"r": 2, "targets": ("q_proj", "up_proj")})


@pytest.fixture
def adapter(tuned, tmp_path):
    return save_as_peft(tuned, tmp_path / "adapter")


@cache
def network(config):
    return quick_jit(lambda variables: forward(Network(Transformer(config)), variables, TOKENS))


def logits(lm, added=None):
    return np.asarray(network(lm.config)({"params": lm.params} | ({"peft": added} if added else {})))


def change(directory, *, config=None, tensors=None, drop=(), file=WEIGHTS):
    """Rewrite an adapter's files with other values and tensors."""
    values = json.loads((directory / CONFIG).read_text()) | (config or {})
    (directory / CONFIG).write_text(json.dumps(values))
    kept = {name: tensor for name, tensor in load_file(directory / file).items() if name not in drop}
    save_file(kept | (tensors or {}), directory / file)


def refused(directory, match, **where):
    with pytest.raises(UserError, match=match) as error:
        slmjax.load(directory, **where)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_an_adapter_reads_back_as_it_was(tuned, adapter):
    again = read_adapter(adapter, slmjax.load)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), again.adapter.added, tuned.adapter.added)
    values = json.loads((adapter / CONFIG).read_text())
    assert values["peft_type"] == "LORA" and values["task_type"] == "CAUSAL_LM" and values["inference_mode"]
    assert sorted(values["target_modules"]) == ["q_proj", "up_proj"] and (values["r"], values["lora_alpha"]) == (2, 32)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "VERA"}, "peft_type is 'VERA'.*LORA"),
        ({"peft_type": None}, "neither peft's nor|peft_type is None"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*path_initial_model"),
        ({"use_qalora": True}, "use_qalora is True.*merge"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"r": 10**9}, "rank of .* is 1000000000"),
        ({"r": 3}, "the rank 3, but its tensors have 2"),
        ({"r": "2"}, "rank of"),
        ({"lora_alpha": "x"}, "must be a number"),
        ({"lora_alpha": float("nan")}, "must be a number"),
        ({"use_dora": True}, "has no lora_magnitude"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"alpha_pattern": {"((a+)+)+$": 3}}, "repeats more"),
        ({"alpha_pattern": {"(": 3}}, "not a regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern is"),
        ({"target_modules": ["q_proj", "up_proj", "query"]}, r"targets 'query', which .* does not have; .*q_proj"),
        ({"target_modules": ["q_proj", "up_proj", "v_proj"]}, r"incomplete.*layers\.0\.self_attn\.v_proj and 2 more"),
        ({"target_modules": [3]}, "list of names"),
        ({"base_model_name_or_path": None}, "does not say which base"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7"),
        ({"base_model_name_or_path": "/nowhere/at all"}, "which is not here: give it"),
    ],
)
def test_a_config_that_cannot_be_followed(adapter, config, match):
    change(adapter, config=config)
    refused(adapter, match)


@pytest.mark.parametrize(
    ("tensors", "drop", "match"),
    [
        ({}, [f"{Q}B.weight"], r"no lora_B of model\.layers\.1\.self_attn\.q_proj"),
        ({}, [f"{Q}A.weight", f"{Q}B.weight"], r"nothing for model\.layers\.1\.self_attn\.q_proj, which its config"),
        (
            {f"{Q}A.weight": np.zeros((2, 16), np.float32)},
            [],
            "another base.*16 inputs and 32 outputs there, 32 and 32",
        ),
        ({f"{Q}A.weight": np.zeros((3, 32), np.float32)}, [], "cannot be multiplied"),
        ({f"{Q}A.weight": np.zeros(2, np.float32)}, [], "cannot be multiplied"),
        ({f"{Q}C.weight": np.zeros(2, np.float32)}, [], "lora_C.* is not expected"),
        ({"evil": np.zeros(2, np.float32)}, [], "evil is not expected"),
        ({"base_model.model.model.layers.1.self_attn.q_proj.ia3_l": np.ones((32, 1), np.float32)}, [], "not expected"),
        (
            {Q.replace(".1.", ".7.") + "A.weight": np.zeros((2, 32), np.float32)},
            [],
            r"adapts .*layers\.7.*does not have",
        ),
        ({"base_model.model.model.norm.weight": np.ones(16, np.float32)}, [], r"norm\.weight is \[16\] there, \[32\]"),
        ({"base_model.model.model.norm.bias": np.ones(32, np.float32)}, [], r"norm\.bias, which its base does not"),
    ],
)
def test_tensors_that_do_not_fit(adapter, tensors, drop, match):
    change(adapter, tensors=tensors, drop=drop)
    refused(adapter, match)


def test_files_that_are_not_what_they_say(adapter, base, tmp_path):
    (adapter / WEIGHTS).rename(tmp_path / "elsewhere")
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04}")
    refused(adapter, "a pickle, which could run code")
    (adapter / "adapter_model.bin").unlink()
    refused(adapter, "adapter_model.safetensors is missing")
    (adapter / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    refused(adapter, "leads out of its directory")
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).write_bytes(b"\xff" * 64)
    refused(adapter, "not a complete safetensors file")
    (adapter / CONFIG).write_text("{")
    refused(adapter, "not readable as JSON")


def test_a_base_that_is_an_adapter_or_another_one(adapter, base):
    change(adapter, config={"base_model_name_or_path": str(adapter)})
    refused(adapter, "is an adapter itself")
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    lm = slmjax.load(adapter, base=base, mesh=mesh, dtype="bfloat16")
    kernel = lm.params["segment_0"]["block_0"]["feedforward"]["up_proj"]["kernel"]
    assert kernel.dtype.name == "bfloat16" and len(kernel.addressable_shards) == 8
    with pytest.raises(UserError, match="takes no base"):
        slmjax.load(base, base=base)


def test_prompts_of_another_size(lm, base, tmp_path):
    tuned = tuned_from(lm, base, method="prefix", prefix={"num_virtual_tokens": 3})
    directory = save_as_peft(tuned, tmp_path / "prefix")
    jax.tree.map(np.testing.assert_array_equal, slmjax.load(directory).peft, tuned.adapter.added)
    change(directory, config={"num_virtual_tokens": 4})
    refused(directory, "promises 4 virtual tokens")
    wrong = {"prompt_embeddings": np.zeros((4, 7), np.float32)}
    change(directory, tensors=wrong)
    refused(directory, "another base.*7 numbers there, 2 x 3 layers x 2 heads x 8 here")
    change(directory, config={"peft_type": "PROMPT_TUNING", "encoder_hidden_size": None})
    refused(directory, "another base.*7 numbers there, 32 here")
    with pytest.raises(UserError, match="no file of weights"):
        slmjax.save(slmjax.load(save_as_peft(tuned, tmp_path / "again")), tmp_path / "model", format="huggingface")


def test_a_window_or_alibi_is_no_prefix_of_peft(lm, base, tmp_path):
    directory = save_as_peft(
        tuned_from(lm, base, method="prefix", prefix={"num_virtual_tokens": 3}), tmp_path / "prefix"
    )
    windowed = dataclasses.replace(lm.config, window=16, layer_pattern=("local",))
    other = dataclasses.replace(lm, config=windowed)
    with pytest.raises(UserError, match="window of 16"):
        read_adapter(directory, lambda path: other)


def test_what_peft_cannot_say_is_not_written(lm, base, tmp_path):
    with pytest.raises(UserError, match="choose --format adapterhub"):
        save_as_peft(tuned_from(lm, base, method="adapter"), tmp_path / "x")
    trained = tuned_from(lm, base, method="prefix", prefix={"num_virtual_tokens": 2}, train=("final_norm/scale",))
    with pytest.raises(UserError, match=r"peft\.train cannot be written"):
        save_as_peft(trained, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_only_an_adapter_is_replaced(tuned, adapter, tmp_path):
    save_as_peft(tuned, adapter)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        save_as_peft(tuned, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def llama(lm):
    """The model as a family that AdapterHub adapts."""
    config = dataclasses.replace(lm.config, qk_norm="none")
    params = quick_jit(Transformer(config).init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    return dataclasses.replace(lm, config=config, params=params)


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer"])
def test_bottleneck_adapters_both_ways(lm, kind, tmp_path):
    lm = llama(lm)
    base = slmjax.save(lm, tmp_path / "base", format="huggingface")
    tuned = tuned_from(lm, base, method="adapter", adapter={"kind": kind, "scale": 2.0})
    directory = save_as_adapterhub(tuned, tmp_path / "adapter")
    values = json.loads((directory / CONFIG).read_text())
    assert values["config"]["mh_adapter"] == (kind == "houlsby") and values["config"]["original_ln_before"] is False
    shapes = {name: tensor.shape for name, tensor in load_file(directory / "adapter.safetensors").items()}
    at = "model.layers.2.output_adapters.adapters.slmjax"
    assert shapes[f"{at}.adapter_down.0.weight"] == (2, 32) and shapes[f"{at}.adapter_up.weight"] == (32, 2)
    assert len(shapes) == 4 * 3 * (2 if kind == "houlsby" else 1)
    again = slmjax.load(directory)
    jax.tree.map(np.testing.assert_array_equal, again.peft, tuned.adapter.added)
    assert again.options == tuned.adapter.options


def test_bottleneck_adapters_that_are_none_of_ours(lm, tmp_path):
    lm = llama(lm)
    base = slmjax.save(lm, tmp_path / "base", format="huggingface")
    directory = save_as_adapterhub(tuned_from(lm, base, method="adapter"), tmp_path / "adapter")
    good = json.loads((directory / CONFIG).read_text())
    for change_to, match in (
        ({"original_ln_before": True}, "original_ln_before is True"),
        ({"is_parallel": True}, "is_parallel is True"),
        ({"scaling": "learned"}, "scaling 'learned'"),
        ({"non_linearity": "tanh"}, "non_linearity 'tanh'"),
        ({"ln_after": True}, "ln_after is True"),
        ({"mh_adapter": True}, "nothing for layer 0's attention"),
    ):
        (directory / CONFIG).write_text(json.dumps(good | {"config": good["config"] | change_to}))
        refused(directory, match)
    (directory / CONFIG).write_text(json.dumps(good))
    file = "adapter.safetensors"
    name = "model.layers.0.output_adapters.adapters.slmjax.adapter_up.weight"
    change(directory, tensors={name: np.zeros((16, 2), np.float32)}, file=file)
    refused(directory, r"another base.*adapter_up is \[16, 2\] there, \[32, 2\] here")
    change(directory, drop=[name], file=file)
    refused(directory, "adapter_up of layer 0's feedforward is missing")
    (directory / file).unlink()
    (directory / "pytorch_adapter.bin").write_bytes(b"")
    refused(directory, "a pickle")
    parallel = tuned_from(lm, base, method="adapter", adapter={"kind": "parallel"})
    with pytest.raises(UserError, match="compute different things"):
        save_adapterhub(parallel.adapter, names_of(lm.config, parallel.family), tmp_path / "y", base_name="b")


def test_convert_inspect_and_generate(lm, base, tuned, adapter, tmp_path, capsys):
    assert main(["inspect", str(adapter), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "adapter of peft" and facts["method"] == "LORA" and facts["base"] == str(base)
    assert facts["rank"] == [2] and facts["trained_parameters"] == 3 * 2 * (32 + 32 + 32 + 64)
    merged = str(tmp_path / "merged")
    assert main(["convert", str(adapter), merged, "--format", "huggingface", "--base", str(base)]) == 0
    expected = logits(lm, tuned.adapter.added)
    assert np.abs(expected - logits(lm)).max() > 0.01
    np.testing.assert_allclose(logits(slmjax.load(merged)), expected, atol=1e-5)
    file = str(tmp_path / "merged.gguf")
    assert main(["convert", str(adapter), file, "--format", "gguf", "--dtype", "float32"]) == 0
    np.testing.assert_allclose(logits(slmjax.load(file)), expected, atol=1e-5)
    assert main(["convert", str(adapter), str(tmp_path / "again"), "--format", "peft"]) == 0
    for name, tensor in load_file(tmp_path / "again" / WEIGHTS).items():
        np.testing.assert_array_equal(tensor, load_file(adapter / WEIGHTS)[name])
    capsys.readouterr()
    arguments = ["--model", str(adapter), "--base", str(base), "--prompt", "the", "--max-new-tokens", "2"]
    assert main(["generate", *arguments, "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("the")
    assert main(["convert", str(base), str(tmp_path / "no"), "--format", "peft"]) == 2
    assert main(["convert", str(adapter), str(tmp_path / "no"), "--format", "peft", "--dtype", "bfloat16"]) == 2
