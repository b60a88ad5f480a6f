"""The front doors: each kind of path gives the same model, and what is none says so."""

import json

import jax
import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.formats.huggingface import hub
from slmjax.sharding.mesh import MeshConfig, make_mesh


def test_both_directories_give_the_same_model(lm, tmp_path):
    for format in ("slmjax", "huggingface"):
        again = slmjax.load(slmjax.save(lm, tmp_path / format, format=format))
        jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
        assert again.stop_ids == lm.stop_ids
        half = slmjax.load(tmp_path / format, dtype="bfloat16", mesh=make_mesh(MeshConfig(fsdp=2, tensor=4)))
        kernel = half.params["segment_0"]["block_0"]["feedforward"]["up_proj"]["kernel"]
        assert kernel.dtype.name == "bfloat16" and len(kernel.addressable_shards) == 8
        assert kernel.addressable_shards[0].data.size == kernel.size // 8
    with pytest.raises(UserError, match="format is 'onnx'"):
        slmjax.save(lm, tmp_path / "x", format="onnx")
    with pytest.raises(UserError, match="dtype is 'int8'"):
        slmjax.load(tmp_path / "slmjax", dtype="int8")


def test_convert_and_inspect(lm, tmp_path, capsys):
    slmjax.save(lm, tmp_path / "ours")
    to = str(tmp_path / "theirs")
    assert main(["convert", str(tmp_path / "ours"), to, "--format", "huggingface", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.strip() == to
    assert main(["inspect", to, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "Hugging Face directory (qwen3)" and facts["dtype"] == "bfloat16"
    assert facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    assert facts["stop_ids"] == list(lm.stop_ids)
    assert main(["convert", to, str(tmp_path / "theirs"), "--format", "huggingface"]) == 0  # in its own place
    assert slmjax.load(to).config.layers == lm.config.layers


def test_a_name_of_the_hub_fetches_what_is_read_and_nothing_else(lm, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs slmjax[hub]")
    directory = slmjax.save(lm, tmp_path / "model", format="huggingface")
    asked = {}

    def fetch(name, allow_patterns):
        asked[name] = allow_patterns
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert slmjax.load("org/name-1.5").config.layers == lm.config.layers
    assert list(asked) == ["org/name-1.5"]
    assert not [pattern for pattern in asked["org/name-1.5"] if pattern.endswith((".py", ".bin", "*"))]


def test_no_network_is_said_plainly(monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs slmjax[hub]")

    def fetch(name, allow_patterns):
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(UserError, match=r"no model at org/name, and .* gives none .*resolution failed"):
        slmjax.load("org/name")
    assert main(["inspect", "org/name"]) == 2 and "check the name and the network" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["a/b/c", "/a/b", "../x", "./x", "x", "a/..", "a/x.gguf", "~/x", ""])
def test_paths_are_no_names_of_the_hub(path):
    assert not hub.is_hub_id(path)
