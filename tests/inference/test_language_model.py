"""Saving and loading: bit for bit, whole or not at all, and hostile files told apart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slmjax.errors import UserError
from slmjax.inference.language_model import load, save


@pytest.fixture
def saved(lm, tmp_path):
    return save(lm, tmp_path / "model")


def edit_config(saved, **changes):
    values = json.loads((saved / "config.json").read_text())
    values["model"] |= changes
    (saved / "config.json").write_text(json.dumps(values))


def edit_weights(saved, change):
    flat = load_file(saved / "params.safetensors")
    change(flat)
    save_file(flat, saved / "params.safetensors")


def test_what_is_saved_is_loaded_bit_for_bit(lm, saved):
    again = load(saved)
    assert again.config == lm.config and again.tokenizer.fingerprint == lm.tokenizer.fingerprint
    assert jax.tree.structure(again.params) == jax.tree.structure(lm.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
    logits = jax.jit(again.apply)(again.params, np.arange(6)[None])
    assert logits.dtype == jnp.float32 and logits.shape == (1, 6, lm.config.vocab_size)


def test_bfloat16_is_half_the_bytes_and_rounds_once(lm, saved, tmp_path):
    small = save(lm, tmp_path / "small", dtype="bfloat16")
    weights = "params.safetensors"
    assert (small / weights).stat().st_size < 0.6 * (saved / weights).stat().st_size
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), load(small).params, lm.params)


def test_only_a_saved_model_is_replaced(lm, saved, tmp_path):
    save(lm, saved, dtype="bfloat16")
    assert load(saved).params["embedder"]["embedding"].dtype == jnp.bfloat16
    (saved / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").write_text("mine")
    for place in (saved, tmp_path / "other"):
        with pytest.raises(UserError, match="choose another directory"):
            save(lm, place)
    with pytest.raises(UserError, match="is a file"):
        save(lm, tmp_path / "file")
    assert (saved / "notes.txt").read_text() == (tmp_path / "other" / "thing").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_model_and_no_rubbish(lm, saved, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in saved.parent.iterdir())
    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(UserError, match="disk is full"):
        save(lm, saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == before
    load(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda flat: flat.pop("final_norm/scale"), "final_norm/scale is missing"),
        (lambda flat: flat.update(extra=np.zeros(3, np.float32)), "extra is not expected"),
        (lambda flat: flat.update({"final_norm/scale": np.zeros(3, np.float32)}), r"has shape \[3\], not \[32\]"),
        (lambda flat: flat.update({"final_norm/scale": np.zeros(32, np.int32)}), "dtype I32"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, change, said):
    edit_weights(saved, change)
    with pytest.raises(UserError, match=said):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_weights_that_are_no_weights(saved, content):
    (saved / "params.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|does not fit"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 10**12}, "num_layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_layers": "two"}, "describes no model"),
        ({"wings": 2}, "wings"),
        ({"rope_scaling": {"kind": "magic"}}, "magic"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
    ],
)
def test_configs_that_are_no_configs(saved, changes, said):
    edit_config(saved, **changes)
    with pytest.raises(UserError, match=said):
        load(saved)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "JSON"),
        ('{"format": "other"}', "'other'"),
        ('{"format": "slmjax", "version": 9, "model": {}}', "version 9"),
        ('{"format": "slmjax", "version": 1}', "describes no model"),
        ('{"model_type": "llama"}', "Hugging Face"),
        ("{}", "no slmjax run"),
    ],
)
def test_directories_of_something_else(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_paths_that_are_nothing(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path, said in (("none", "no model at"), ("model.gguf", "is a file"), (".", "no slmjax run")):
        with pytest.raises(UserError, match=said):
            load(tmp_path / path)
