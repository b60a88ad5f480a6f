"""Checkpoints as people have them: under other names, tied by either one, quantized, split, too large for a dtype."""

import dataclasses
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.formats.catalog import format_of_destination
from slmjax.formats.huggingface.export import save_huggingface

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def tied(lm):
    config = dataclasses.replace(lm.config, tie_embeddings=True)
    return dataclasses.replace(lm, config=config, params={k: v for k, v in lm.params.items() if k != "lm_head"})


def rename(directory, change):
    flat = load_file(directory / "model.safetensors")
    save_file({change(name): x for name, x in flat.items()}, directory / "model.safetensors")


def assert_loads_as(directory, lm):
    jax.tree.map(np.testing.assert_array_equal, slmjax.load(directory).params, lm.params)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"_forward_module.{name}",
        lambda name: re.sub(r"layers\.(\d+)\.", r"layers.\1._orig_mod.", name),
        lambda name: re.sub(r"layers\.(\d+)\.", r"layers.\1._fsdp_wrapped_module._checkpoint_wrapped_module.", name),
    ],
)
def test_names_that_a_wrapper_left(lm, saved, change):
    rename(saved, change)
    assert_loads_as(saved, lm)


def test_a_model_without_its_head(tied, lm, tmp_path):
    """Saved as transformers' base class: no prefix. Of a tied model nothing is missing, of another its head is."""
    save_huggingface(tied, tmp_path / "tied")
    rename(tmp_path / "tied", lambda name: name.removeprefix("model."))
    assert_loads_as(tmp_path / "tied", tied)
    save_huggingface(lm, tmp_path / "untied")
    flat = load_file(tmp_path / "untied" / "model.safetensors")
    kept = {name.removeprefix("model."): x for name, x in flat.items() if name != "lm_head.weight"}
    save_file(kept, tmp_path / "untied" / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        slmjax.load(tmp_path / "untied")


@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
def test_a_tied_table_under_either_name(tied, tmp_path, wrapper):
    save_huggingface(tied, tmp_path / "m")
    rename(tmp_path / "m", lambda n: wrapper + ("lm_head.weight" if n == "model.embed_tokens.weight" else n))
    assert slmjax.load(tmp_path / "m").config.tie_embeddings
    assert_loads_as(tmp_path / "m", tied)


def test_one_tensor_under_two_names(lm, saved):
    flat = load_file(saved / "model.safetensors")
    save_file({**flat, f"module.{Q}": flat[Q]}, saved / "model.safetensors")
    with pytest.raises(UserError, match="are the same one"):
        slmjax.load(saved)


BNB = {f"{Q}.absmax": np.zeros(8, np.uint8), f"{Q}.quant_map": np.zeros(16, np.float32)}
GPTQ = {Q.replace("weight", name): np.zeros((4, 4), np.int32) for name in ("qweight", "qzeros", "scales", "g_idx")}
AWQ = {name: x for name, x in GPTQ.items() if "g_idx" not in name}
MXFP4 = {Q.replace("weight", name): np.zeros((4, 4), np.uint8) for name in ("weight_blocks", "weight_scales")}
TENSORS = [
    ("bitsandbytes", BNB, np.uint8),
    ("bitsandbytes", {Q.replace("weight", "SCB"): np.zeros(4, np.float32)}, np.int8),
    ("GPTQ", GPTQ, None),
    ("AWQ", AWQ, None),
    ("MXFP4", MXFP4, None),
    ("compressed-tensors", {Q.replace("weight", "weight_packed"): np.zeros(4, np.int32)}, None),
    ("fp8", {Q.replace("weight", "weight_scale_inv"): np.ones((1, 1), np.float32)}, np.uint8),
    ("HQQ", {Q.replace("weight", "W_q"): np.zeros(4, np.uint8)}, None),
    ("quanto", {f"{Q}._data": np.zeros(4, np.int8), f"{Q}._scale": np.ones(4, np.float32)}, None),
    ("MLX", {Q.replace("weight", n): np.zeros(4, np.float32) for n in ("scales", "biases")}, np.uint32),
    ("a method that its config does not name", {}, np.int8),
]


@pytest.mark.parametrize(("method", "tensors", "weight"), TENSORS)
def test_quantized_weights_are_named_by_their_tensors(saved, method, tensors, weight):
    flat = load_file(saved / "model.safetensors")
    shape = flat.pop(Q).shape
    flat |= {} if weight is None else {Q: np.zeros(shape, weight)}
    save_file({**flat, **tensors}, saved / "model.safetensors")
    with pytest.raises(UserError, match=f"is quantized by {method}, which is not read: give the model"):
        slmjax.load(saved)
    with pytest.raises(UserError, match=f"quantized by {method}"):
        slmjax.inspect(saved)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_algo": "FP8"}}, "FP8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    ],
)
def test_quantized_weights_are_named_by_their_config(lm, saved, config, method):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.warns(UserWarning, match=f"quantized by {method}, but its weights are whole"):
        assert_loads_as(saved, lm)
    rename(saved, lambda name: name.replace("q_proj.weight", "q_proj.codes_of_a_kind"))
    with pytest.raises(UserError, match=f"is quantized by {method}, which"):
        slmjax.load(saved)


def test_shards_without_their_index(lm, tmp_path):
    save_huggingface(lm, tmp_path / "m", max_shard_bytes=20_000)
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    (tmp_path / "m" / "config.json").rename(tmp_path / "c")
    (tmp_path / "c").rename(tmp_path / "m" / "config.json")
    assert_loads_as(tmp_path / "m", lm)
    shards = sorted((tmp_path / "m").glob("model-*"))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"holds {len(shards) - 1} of {len(shards)} shards, and model-00002-of"):
        slmjax.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("pytorch_model.bin", "a pickle, which could run code"),
        ("consolidated.00.pth", "a pickle, which could run code"),
        ("flax_model.msgpack", "a file of Flax"),
        ("tf_model.h5", "a file of TensorFlow"),
        ("model.safetensors.incomplete", "a download that was cut off: fetch it again"),
        ("latest", "DeepSpeed or FSDP.*zero_to_fp32"),
    ],
)
def test_weights_of_another_kind_are_named(saved, name, match):
    (saved / "model.safetensors").rename(saved / name)
    with pytest.raises(UserError, match=match):
        slmjax.load(saved)


def test_a_pointer_is_not_the_file(saved):
    (saved / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n")
    with pytest.raises(UserError, match=r"pointer of Git LFS.*git lfs pull"):
        slmjax.load(saved)


def test_a_file_of_weights_alone_points_to_its_directory(saved):
    with pytest.raises(UserError, match=f"holds weights alone: give its directory, {re.escape(str(saved))}"):
        slmjax.load(saved / "model.safetensors")


@pytest.mark.parametrize("format", ["slmjax", "huggingface", "gguf"])
@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_no_writer_makes_a_number_infinite(lm, tmp_path, format, dtype, value):
    large = jax.tree.map(jnp.copy, lm.params)
    kernel = large["segment_0"]["block_0"]["feedforward"]["up_proj"]["kernel"]
    large["segment_0"]["block_0"]["feedforward"]["up_proj"]["kernel"] = kernel.at[1, 2, 3].set(value)
    with pytest.raises(UserError, match=r"up.*too large for .*float32"):
        slmjax.save(dataclasses.replace(lm, params=large), tmp_path / "m.gguf", format=None, dtype=dtype) if (
            format == "gguf"
        ) else slmjax.save(dataclasses.replace(lm, params=large), tmp_path / "m", format=format, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_is_too_narrow_is_refused_on_loading(lm, tmp_path):
    large = jax.tree.map(jnp.copy, lm.params)
    large["embedder"]["embedding"] = large["embedder"]["embedding"].at[1, 2].set(1e5)
    slmjax.save(dataclasses.replace(lm, params=large), tmp_path / "m")
    with pytest.raises(UserError, match=r"embedder/embedding are too large for float16"):
        slmjax.load(tmp_path / "m", dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slmjax.load(tmp_path / "m", dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("m.gguf", None, "gguf"),
        ("m.GGUF", None, "gguf"),
        ("m", None, "slmjax"),
        ("qwen2.5-0.5b", None, "slmjax"),
        ("m", "huggingface", "huggingface"),
        ("m", "gguf", "gguf"),
    ],
)
def test_the_destination_says_the_format(name, format, expected):
    assert format_of_destination(name, format) == expected


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin", "m.pth", "m.onnx", "m.ggml", "m.zip", "m.gguf"])
def test_names_of_files_that_are_not_written(lm, tmp_path, capsys, name):
    slmjax.save(lm, tmp_path / "source")
    more = ["--format", "huggingface"] if name == "m.gguf" else []
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / name), *more]) == 2
    assert "m." in capsys.readouterr().err and not (tmp_path / name).exists()


def test_convert_writes_a_file_where_a_file_is_named(lm, tmp_path, capsys):
    slmjax.save(lm, tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "m.gguf")]) == 0
    (tmp_path / "m.gguf").rename(tmp_path / "renamed")  # a file is told by what it begins with
    assert slmjax.load(tmp_path / "renamed").config.layers == lm.config.layers
