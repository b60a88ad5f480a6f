"""LLaMA's later heirs, quirks on: in from transformers to the logit, generated as there, back bit for bit, and GGUF."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch (pip install slmjax[parity])")
transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install slmjax[parity])")

import jax

from slmjax.errors import UserError
from slmjax.formats.gguf.architectures import config_to
from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import family_for
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.formats.weight_map import write_tensors
from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from tests.parity import miniatures as mini

SIZES = {"vocab_size": mini.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
SIZES |= {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
LOCAL, FULL = "sliding_attention", "full_attention"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8}
ALPHA = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
WINDOWS = {"sliding_window": 5, "num_hidden_layers": 5}

# name -> (transformers' config class, what is changed); T = 24 tokens go beyond every window and every 16.
CASES = {
    "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": [FULL] * 2, "rope_parameters": LLAMA3}),
    "exaone4, windows": ("Exaone4", {**WINDOWS, "head_dim": 12, "tie_word_embeddings": True}),
    "exaone4, odd windows": ("Exaone4", {**WINDOWS, "layer_types": [FULL, LOCAL, LOCAL, FULL, LOCAL]}),
    "exaone4, no rope": ("Exaone4", {"sliding_window": 5, "layer_types": [FULL] * 2}),
    "olmo3": ("Olmo3", {**WINDOWS, "rope_parameters": {FULL: YARN, LOCAL: {**PLAIN, "rope_theta": 5e5}}}),
    "olmo3, two thetas": (
        "Olmo3",
        {**WINDOWS, "attention_bias": True, "tie_word_embeddings": True, "layer_types": [LOCAL, FULL] * 2 + [FULL]}
        | {"rope_parameters": {FULL: {**PLAIN, "rope_theta": 1e6}, LOCAL: PLAIN}},
    ),
    "olmo3, no windows": ("Olmo3", {"layer_types": [FULL] * 2}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {"rope_parameters": ALPHA, "head_dim": 12}),
    "hunyuan_v1_dense, tied and biased": ("HunYuanDenseV1", {"tie_word_embeddings": True, "attention_bias": True}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 12, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "ernie4_5, biased": ("Ernie4_5", {"use_bias": True, "tie_word_embeddings": False}),
}
QUICK = {"hunyuan_v1_dense"}
# Written as GGUF and read back to the same function, except where a tied head or biases have no place there.
IN_GGUF = {"exaone4": "exaone4", "exaone4, windows": "exaone4", "olmo3": "olmo2", "hunyuan_v1_dense": "hunyuan-dense"}
IN_GGUF |= {"olmo3, no windows": "olmo2", "ernie4_5": "llama", "ernie4_5, biased": "llama"}


def model_of(case):
    family, changes = CASES[case]
    return mini.random_model(getattr(transformers, f"{family}Config")(**SIZES | changes))


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES])
def test_transformers_and_back(case, tmp_path, record_property):
    found = mini.assert_family(model_of(case), tmp_path)
    record_property("largest_differences", (case, *found))  # benchmarks/family_parity.py makes a table of them


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_generation_with_the_cache_goes_as_in_transformers(case, tmp_path):
    """Prompts shorter and longer than the windows, together in one batch here and one after the other there."""
    model = model_of(case)
    model.save_pretrained(tmp_path)
    place = open_huggingface(tmp_path)
    lm = LanguageModel(config=place.config, params=read_weights(place), tokenizer=mini.tokenizer())
    prompts = [mini.random_tokens(1, length)[0].tolist() for length in (3, 11)]
    options = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "eos_token_id": -1}
    theirs = [model.generate(torch.tensor([p]), **options)[0, len(p) :].tolist() for p in prompts]
    assert generate_ids(lm, prompts, max_new_tokens=16) == theirs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:llama.cpp ignores")
@pytest.mark.parametrize("case", IN_GGUF)
def test_gguf_and_back_is_the_same_directory(case, tmp_path):
    import slmjax

    model = model_of(case)
    model.save_pretrained(tmp_path / "theirs")
    place = open_huggingface(tmp_path / "theirs")
    lm = LanguageModel(config=place.config, params=read_weights(place), tokenizer=None)
    path = slmjax.save(lm, tmp_path / "m.gguf", format="gguf", dtype="float32")
    read = slmjax.load(path)
    assert config_to(place.config).metadata["general.architecture"] == IN_GGUF[case]
    assert place.config.differences(read.config, rel_tol=1e-6) == {}
    jax.tree.map(np.testing.assert_array_equal, read.params, lm.params)
    # The same network under the same family's names.
    written = dict(write_tensors(read.params, FAMILIES[place.family.model_type].entries(read.config)))
    for name, tensor in model.state_dict().items():
        if name in written:
            np.testing.assert_array_equal(written[name], tensor.numpy())


# What says nothing of the network: ids, dtypes, dropout, which version wrote it, how it is run.
BESIDE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
}
BESIDE |= {"pad_token_id", "eod_token_id", "pretraining_tp", "sliding_window_pattern", "head_dim", "attention_dropout"}


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][1].get("rope_parameters") is not ALPHA])
def test_transformers_config_of_our_export_is_its_own(case):
    """Every key of its class that says something of the network; of a window's pattern, layer_types do."""
    kind, changes = CASES[case]
    theirs = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    family = FAMILIES[theirs.model_type]
    written = family.config_to(family.config_from(json.loads(theirs.to_json_string(use_diff=False))))
    again = type(theirs).from_dict(json.loads(json.dumps(written)))
    expected, found = ({k: v for k, v in c.to_dict().items() if k not in BESIDE} for c in (theirs, again))
    if LOCAL not in (getattr(again, "layer_types", None) or ()):
        for values in (expected, found):
            values.pop("sliding_window", None)
    ropes = expected.pop("rope_parameters")
    for kind, table in ropes.items() if FULL in ropes else [(None, ropes)]:
        ours = found["rope_parameters"] if kind is None else found["rope_parameters"][kind]
        assert {key: ours.get(key) for key in table} == table
    assert {key: found.get(key) for key in expected} == expected


RELEASED = [  # what the released config.json says of the network, and what it must be read as
    (
        "exaone4",  # LGAI-EXAONE/EXAONE-4.0-1.2B, in transformers 4
        {"hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 65536, "rope_theta": 1e6}
        | {"sliding_window": None, "sliding_window_pattern": None, "layer_types": [FULL] * 30}
        | {"tie_word_embeddings": True, "rope_scaling": {**LLAMA3, "factor": 16.0}},
        {"rope_pattern": (True,), "layer_pattern": ("global",), "qk_norm": "head", "rope_theta": 5e5},
    ),
    (
        "olmo3",  # allenai/Olmo-3-7B, in transformers 4: one theta, whose scaling is of whole layers alone
        {"hidden_size": 4096, "num_hidden_layers": 4, "rope_theta": 500000, "sliding_window": 4096}
        | {"rope_scaling": {**YARN, "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1}}
        | {"layer_types": [LOCAL, LOCAL, LOCAL, FULL], "max_position_embeddings": 65536},
        {"rope_theta": 5e5, "rope_theta_local": 5e5, "window": 4096},
    ),
    (
        "hunyuan_v1_dense",
        {"hidden_size": 1024, "num_attention_heads": 8, "head_dim": 128, "rope_theta": 10000.0, "use_qk_norm": True}
        | {"use_cla": False, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale": 1.0}},
        {"rope_theta": 1e4 * 1000.0 ** (128 / 126), "rope_scaling": None, "qk_norm_after_rope": True},
    ),
]


@pytest.mark.parametrize(("model_type", "values", "expected"), RELEASED)
def test_configs_of_transformers_4_are_read(model_type, values, expected):
    config = FAMILIES[model_type].config_from(values)
    assert {name: getattr(config, name) for name in expected} == expected
    assert family_for(config).model_type == model_type
    again = FAMILIES[model_type].config_from(json.loads(json.dumps(FAMILIES[model_type].config_to(config))))
    assert config.differences(again) == {}


REFUSED = [
    ("exaone4", {"sliding_window": 5, "sliding_window_pattern": "LLLG"}, "sliding_window_pattern"),
    ("exaone4", {"sliding_window": 5, "layer_types": ["chunked_attention"] * 32}, "chunked_attention"),
    ("olmo3", {"rope_parameters": {FULL: PLAIN, LOCAL: YARN}}, "rope of windowed layers is scaled"),
    ("hunyuan_v1_dense", {"use_cla": True}, "use_cla"),
    ("ernie4_5", {"compression_ratio": 2.0}, "compression_ratio"),
    ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": -2.0}}, "alpha"),
    ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": "many"}}, "alpha"),
]


@pytest.mark.parametrize(("model_type", "values", "key"), REFUSED)
def test_what_no_network_of_ours_has_is_refused_by_name(model_type, values, key):
    with pytest.raises(UserError, match=key):
        FAMILIES[model_type].config_from(values)


@pytest.mark.parametrize(("model_type", "word"), [("gemma3n", "residual streams"), ("lfm2", "short convolutions")])
def test_networks_of_another_kind_are_refused_with_the_reason(model_type, word, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": ["X"]}))
    with pytest.raises(UserError, match=f"{model_type}' cannot be read, because .*{word}.*: choose"):
        open_huggingface(tmp_path)


def test_a_norm_after_the_rotation_is_of_each_head():
    sizes = {"vocab_size": 8, "num_layers": 1, "embed_dim": 8, "num_heads": 2, "ffn_dim": 8}
    for qk_norm in ("none", "full", "heads"):
        with pytest.raises(UserError, match="qk_norm_after_rope=True with"):
            ModelConfig(**sizes, qk_norm=qk_norm, qk_norm_after_rope=True)
    before, after = (ModelConfig(**sizes, qk_norm="head", qk_norm_after_rope=at) for at in (False, True))
    assert list(before.differences(after)) == ["qk_norm_after_rope"]


def test_a_stretch_of_theta_is_said_in_theta_when_written():
    """Written by us, a Hunyuan with `alpha` says the theta that it gives, in both dialects."""
    family = FAMILIES["hunyuan_v1_dense"]
    config = family.config_from({"head_dim": 12, "rope_parameters": ALPHA})
    written = family.config_to(config)
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == config.rope_theta > 1e7
    assert written["rope_scaling"] is None and written["rope_parameters"]["rope_type"] == "default"
