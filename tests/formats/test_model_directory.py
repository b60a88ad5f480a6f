"""Saved models: loaded to the bit as they were written, read by transformers too, and refused where hostile."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import slmjax
from slmjax.errors import UserError
from slmjax.formats.huggingface.export import family_for
from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from slmjax.models.parameters import flatten
from slmjax.models.transformer import Transformer
from slmjax.recipes.config import run_config
from slmjax.recipes.quickstart_config import get_config
from slmjax.tokenization.tokenizer import train_bpe

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def odd(lm):
    """A network that No family of transformers can express, without a tokenizer."""
    config = dataclasses.replace(lm.config, clip_qkv=3.0, norm_placement="post", qk_norm="none", num_heads=(4, 2, 4))
    params = jax.jit(Transformer(config).init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    return LanguageModel(config=config, params=params, stop_ids=(5,))


@pytest.fixture
def saved(lm, tmp_path):
    return slmjax.save(lm, tmp_path / "model")


@pytest.fixture
def saved_odd(odd, tmp_path):
    return slmjax.save(odd, tmp_path / "odd")


@pytest.fixture
def old(lm, tmp_path):
    """A model as it was saved before slmjax.json."""
    directory = tmp_path / "old"
    lm.tokenizer.save(directory)
    save_file({path: np.asarray(leaf) for path, leaf in flatten(lm.params).items()}, directory / "params.safetensors")
    description = {"format": "slmjax", "version": 1, "model": lm.config.to_dict(), "stop_ids": list(lm.stop_ids)}
    (directory / "config.json").write_text(json.dumps(description))
    return directory


def assert_the_very_same(again, lm):
    assert again.config == lm.config and again.stop_ids == lm.stop_ids
    assert jax.tree.structure(again.params) == jax.tree.structure(lm.params)
    assert jax.tree.map(lambda x: x.dtype, again.params) == jax.tree.map(lambda x: x.dtype, lm.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
    assert (again.tokenizer is None) == (lm.tokenizer is None)
    if lm.tokenizer is not None:
        assert again.tokenizer.fingerprint == lm.tokenizer.fingerprint
        assert again.tokenizer.settings == lm.tokenizer.settings


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path, change):
    flat = load_file(path)
    change(flat)
    save_file(flat, path)


# what is written is read


def test_a_model_of_a_family_lies_as_transformers_has_it_and_is_the_very_same(lm, saved):
    assert json.loads((saved / "config.json").read_text())["model_type"] == "qwen3"
    assert "model.embed_tokens.weight" in load_file(saved / WEIGHTS)
    assert_the_very_same(slmjax.load(saved), lm)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_each_array_survives(lm, tmp_path, dtype):
    half = dataclasses.replace(lm, params=jax.tree.map(lambda x: x.astype(dtype), lm.params))
    half.params["final_norm"]["scale"] = lm.params["final_norm"]["scale"]
    assert_the_very_same(slmjax.load(slmjax.save(half, tmp_path / "half")), half)
    whole = slmjax.load(slmjax.save(half, tmp_path / "whole", dtype="float32"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(whole.params)} == {"float32"}


def test_a_tokenizer_with_bos_named_templates_and_odd_settings_survives(lm, tmp_path):
    tokenizer = train_bpe(["the old river walks under the light of a stone"] * 4, 264, progress=False)
    tokenizer.settings |= {
        "add_bos_token": True,
        "chat_template": [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool", "template": "{{ 2 }}"}],
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": 10**30,
        "mine": {"a": [1, None]},
    }
    tokenizer.bos_id = tokenizer.eos_id
    with_bos = dataclasses.replace(lm, tokenizer=tokenizer, stop_ids=())
    directory = slmjax.save(with_bos, tmp_path / "model")
    first = json.loads((directory / "tokenizer.json").read_text())["post_processor"]["single"][0]
    assert first["SpecialToken"]["id"] == "<|endoftext|>"  # so that transformers begins texts as we do
    again = slmjax.load(directory)
    assert again.tokenizer.settings == tokenizer.settings and again.stop_ids == ()
    assert json.loads((directory / "tokenizer.json").read_text()) != json.loads(
        again.tokenizer._backend._plain.to_str()
    )
    assert_the_very_same(slmjax.load(slmjax.save(again, tmp_path / "again")), again)


def test_a_network_that_no_family_has_lies_under_our_names(odd, saved_odd, tmp_path):
    assert sorted(path.name for path in saved_odd.iterdir()) == [WEIGHTS, "slmjax.json"]
    assert set(load_file(saved_odd / WEIGHTS)) == set(flatten(odd.params))
    assert_the_very_same(slmjax.load(saved_odd), odd)
    with pytest.raises(UserError, match="No family of transformers"):
        slmjax.save(odd, tmp_path / "x", format="huggingface")


def test_a_model_without_a_tokenizer_is_run_by_token_ids_and_says_where_text_is_missing(lm, odd, saved_odd, tmp_path):
    mute = dataclasses.replace(lm, tokenizer=None)
    for directory in (
        saved_odd,
        slmjax.save(mute, tmp_path / "mute"),
        slmjax.save(mute, tmp_path / "theirs", format="huggingface"),
        slmjax.save(mute, tmp_path / "mute.gguf", format="gguf", dtype="float32"),
    ):
        loaded = slmjax.load(directory)
        assert loaded.tokenizer is None
        assert loaded.stop_ids == (odd.stop_ids if directory == saved_odd else lm.stop_ids)
        assert slmjax.inspect(directory)["tokenizer"] == "not found"
        with pytest.raises(UserError, match=rf"{directory} has no tokenizer"):
            slmjax.generate(loaded, ["the old"])
    assert generate_ids(slmjax.load(tmp_path / "mute"), [[5, 6]], max_new_tokens=3) == generate_ids(
        lm, [[5, 6]], max_new_tokens=3
    )


@pytest.mark.slow
def test_transformers_opens_it_as_it_lies(lm, saved):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    text = "the old river walks under a stone"
    ids = tokenizer(text)["input_ids"]
    assert ids == lm.tokenizer.encode(text) and tokenizer.chat_template == lm.tokenizer.settings["chat_template"]
    assert theirs.generation_config.eos_token_id == list(lm.stop_ids)
    again = slmjax.load(saved)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(again.apply(again.params, np.asarray([ids])), logits, atol=1e-4)
    prompt = ids[:5]
    out = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=list(lm.stop_ids))
    ours = generate_ids(again, [prompt], max_new_tokens=8, stop_ids=again.stop_ids)[0]
    assert out[0, len(prompt) : len(prompt) + len(ours)].tolist() == ours


def test_the_quickstarts_model_is_one_of_transformers():
    network = run_config(get_config()).model
    assert family_for(network).model_type == "llama"


def test_a_model_saved_before_is_loaded_and_replaced(lm, old):
    again = slmjax.load(old)
    assert again.stop_ids == lm.stop_ids
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
    assert slmjax.inspect(old)["kind"] == "saved model" and slmjax.inspect(old)["dtype"] == "float32"
    assert_the_very_same(slmjax.load(slmjax.save(lm, old)), lm)
    assert not (old / "params.safetensors").exists()


# what may be replaced


def test_only_a_saved_model_is_replaced(lm, saved, tmp_path):
    slmjax.save(lm, saved, dtype="bfloat16")
    assert slmjax.load(saved).params["embedder"]["embedding"].dtype == jnp.bfloat16
    (saved / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").write_text("mine")
    theirs = slmjax.save(lm, tmp_path / "theirs", format="huggingface")
    for place in (saved, tmp_path / "other", theirs):
        with pytest.raises(UserError, match="choose another directory"):
            slmjax.save(lm, place)
    with pytest.raises(UserError, match="is a file"):
        slmjax.save(lm, tmp_path / "file")
    assert (saved / "notes.txt").read_text() == (tmp_path / "other" / "thing").read_text() == "mine"


@pytest.mark.parametrize("fixture", ["saved", "saved_odd"])
def test_a_save_that_fails_leaves_the_old_model_and_no_rubbish(fixture, request, monkeypatch):
    directory = request.getfixturevalue(fixture)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    lm = slmjax.load(directory)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="disk is full"):
        slmjax.save(lm, directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


# hostile and broken


def test_two_descriptions_that_differ_are_refused(saved):
    edit(saved / "config.json", rope_theta=5.0, rope_parameters=None)
    with pytest.raises(UserError, match=r"differ in rope_theta: remove its slmjax\.json"):
        slmjax.load(saved)
    (saved / "slmjax.json").unlink()
    assert slmjax.load(saved).config.rope_theta == 5.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda flat: flat.pop("final_norm/scale"), "final_norm/scale is missing"),
        (lambda flat: flat.update(extra=np.zeros(3, np.float32)), "extra is not expected"),
        (lambda flat: flat.update({"final_norm/scale": np.zeros(3, np.float32)}), r"has shape \[3\].*\[32\]"),
        (lambda flat: flat.update({"final_norm/scale": np.zeros(32, np.int32)}), "dtype I32"),
    ],
)
@pytest.mark.parametrize("fixture", ["saved_odd", "old"])
def test_weights_that_do_not_fit_are_named(fixture, request, change, said):
    directory = request.getfixturevalue(fixture)
    edit_weights(directory / (WEIGHTS if fixture == "saved_odd" else "params.safetensors"), change)
    with pytest.raises(UserError, match=said):
        slmjax.load(directory)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0{}"])
@pytest.mark.parametrize("fixture", ["saved_odd", "old"])
def test_weights_that_are_no_weights(fixture, request, content):
    directory = request.getfixturevalue(fixture)
    (directory / (WEIGHTS if fixture == "saved_odd" else "params.safetensors")).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|does not fit|not a (complete )?safetensors file"):
        slmjax.load(directory)


MODELS = [
    ({"num_layers": 10**12}, "num_layers"),
    ({"vocab_size": 10**12}, "vocab_size"),
    ({"num_layers": "two"}, "describes a model that this version cannot read"),
    ({"wings": 2}, "wings"),
    ({"rope_scaling": {"kind": "magic"}}, "magic"),
    ({"num_kv_heads": 3}, "num_kv_heads"),
]


@pytest.mark.parametrize(("changes", "said"), MODELS)
@pytest.mark.parametrize(("fixture", "name"), [("saved", "slmjax.json"), ("old", "config.json")])
def test_configs_that_are_no_configs(fixture, name, request, changes, said):
    path = request.getfixturevalue(fixture) / name
    edit(path, model=json.loads(path.read_text())["model"] | changes)
    with pytest.raises(UserError, match=said):
        slmjax.load(path.parent)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"post_processor": {"type": "Evil"}}, "post_processor"),
        ({"settings": 3}, "settings"),
        ({"without": [3]}, "without"),
    ],
)
def test_tokenizers_that_cannot_be_restored(saved, changes, said):
    edit(saved / "slmjax.json", tokenizer_changes=changes)
    with pytest.raises(UserError, match=said):
        slmjax.load(saved)


@pytest.mark.parametrize("name", ["slmjax.json", "config.json", "model.safetensors", "tokenizer.json"])
def test_no_file_of_the_directory_leads_out_of_it(saved, tmp_path, name):
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out"):
        slmjax.load(saved)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "JSON"),
        ('{"format": "other"}', "'other'"),
        ('{"format": "slmjax", "version": 9, "model": {}}', "version 9"),
        ('{"format": "slmjax", "version": 1}', "does not describe a model"),
        ("{}", "not a run, a checkpoint, a model or an adapter"),
    ],
)
def test_directories_of_something_else(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=said):
        slmjax.load(tmp_path)
    with pytest.raises(UserError, match=said):
        slmjax.inspect(tmp_path)


def test_paths_that_are_nothing(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"words")
    for path, said in (("none", "no model at"), ("notes.txt", "is a file"), (".", "not a run")):
        with pytest.raises(UserError, match=said):
            slmjax.load(tmp_path / path)
