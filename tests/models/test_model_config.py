"""ModelConfig: segments that expand to the layers, round trips, and mistakes refused with the key and the numbers."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.models.config import LayerSpec, ModelConfig, RopeScaling
from slmjax.models.families.registry import model_config

SMALL = {"vocab_size": 61, "num_layers": 4, "embed_dim": 32, "num_heads": 4, "ffn_dim": 48}


def expanded(config: ModelConfig) -> tuple[LayerSpec, ...]:
    return tuple(spec for segment in config.segments for spec in segment.period * segment.repeats)


patterns = st.lists(st.sampled_from(["local", "global"]), min_size=1, max_size=7)
widths = st.lists(st.sampled_from([8, 16]), min_size=1, max_size=14)


@given(pattern=patterns, ropes=st.lists(st.booleans(), min_size=1, max_size=4), widths=widths, per_layer=st.booleans())
@settings(deadline=None, max_examples=200)
def test_segments_expand_to_the_layers(pattern, ropes, widths, per_layer):
    config = ModelConfig(
        **SMALL
        | {
            "num_layers": len(widths),
            "ffn_dim": tuple(widths) if per_layer else 8,
            "layer_pattern": tuple(pattern),
            "rope_pattern": tuple(ropes),
            "window": 5,
        }
    )
    assert expanded(config) == config.layers
    assert all(segment.repeats >= 1 for segment in config.segments)


@given(st.integers(1, 200), patterns)
@settings(deadline=None)
def test_a_pattern_compiles_no_more_than_its_period_and_a_rest(layers, pattern):
    config = ModelConfig(**SMALL | {"num_layers": layers, "layer_pattern": tuple(pattern), "window": 5})
    assert sum(len(segment.period) for segment in config.segments) < 2 * len(pattern)


def test_uniform_models_are_one_layer():
    for name in ("smollm2-135m", "llama-3.2-1b", "gpt2", "mistral-7b-v0.1"):
        (segment,) = model_config(name).segments
        assert len(segment.period) == 1 and segment.repeats == model_config(name).num_layers


def test_gemma3_compiles_one_period_and_its_rest():
    first, *rest = model_config("gemma-3-1b").segments  # 26 layers: 4 x (5 local, 1 global), then 2 local
    assert [spec.window for spec in first.period] == [512] * 5 + [None]
    assert [spec.rope for spec in first.period] == [1] * 5 + [0]
    assert first.repeats == 4
    assert [(len(s.period), s.repeats) for s in rest] == [(1, 2)]
    assert model_config("gemma-3-1b").ropes == ((1e6, None), (1e4, None))


def test_smollm3_leaves_every_fourth_layer_without_rotation():
    (segment,) = model_config("smollm3-3b").segments
    assert [spec.rope for spec in segment.period] == [0, 0, 0, None]


def test_openelm_layers_of_equal_shape_are_shared():
    config = model_config("openelm-270m")
    assert expanded(config) == config.layers
    assert [spec.num_kv_heads for spec in config.layers] == [3] * 5 + [4] * 7 + [5] * 4


@pytest.mark.parametrize("name", ["gemma-3-1b", "llama-3.2-1b", "openelm-270m", "smollm3-3b"])
def test_a_config_survives_json(name):
    config = model_config(name)
    assert ModelConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(dataclasses.replace(config))  # jit caches by it


def test_head_dim_and_kv_heads_follow_unless_given():
    config = ModelConfig(**SMALL)
    assert (config.head_dim, config.num_kv_heads, config.rotary_dim) == (8, 4, 8)
    assert ModelConfig(**SMALL, head_dim=20, rope_fraction=0.5).rotary_dim == 10


LONGROPE = {"kind": "longrope", "original_context_length": 8, "short_factor": [1.0] * 4, "long_factor": [1.0] * 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "model.embed_dim=32 is not a multiple of model.num_heads=5"),
        ({"num_heads": 0}, "model.embed_dim=32 is not a multiple of model.num_heads=0"),
        ({"num_heads": (4, 4, 4, 4)}, "set model.head_dim"),
        ({"num_kv_heads": 3}, "model.num_heads=4 is not a multiple of model.num_kv_heads=3 (layer 0)"),
        ({"num_kv_heads": 8}, "model.num_heads=4 is not a multiple of model.num_kv_heads=8"),
        ({"num_kv_heads": (4, 2, 3, 4)}, "model.num_kv_heads=3 (layer 2)"),
        ({"num_kv_heads": -1}, "model.num_kv_heads=-1 must be at least 1"),
        ({"ffn_dim": (8, 8)}, "model.ffn_dim lists 2 layers but model.num_layers=4"),
        ({"ffn_dim": (8, 8, 0, 8)}, "model.ffn_dim=(8, 8, 0, 8) must be at least 1"),
        ({"ffn_dim": ()}, "model.ffn_dim lists 0 layers but model.num_layers=4"),
        ({"vocab_size": 0}, "model.vocab_size=0 must be at least 1"),
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"embed_dim": 0}, "model.embed_dim=0 must be at least 1"),
        ({"head_dim": -8}, "model.head_dim=-8 must be at least 1"),
        ({"context_length": 0}, "model.context_length=0 must be at least 1"),
        ({"block_repeats": 0}, "model.block_repeats=0 must be at least 1"),
        ({"num_layers": "four"}, "model.num_layers='four' must be a whole number of at least 1"),
        ({"vocab_size": True}, "model.vocab_size=True must be a whole number of at least 1"),
        ({"ffn_dim": 8.5}, "model.ffn_dim=8.5 must be a whole number of at least 1"),
        ({"position_offset": -1}, "model.position_offset=-1 must be at least 0"),
        ({"embedding_projection_dim": -4}, "model.embedding_projection_dim=-4 must be at least 0"),
        ({"rope_theta": 0}, "model.rope_theta=0 must be above 0"),
        ({"rope_theta": None}, "model.rope_theta=None must be a number"),
        ({"rope_theta_local": -1.0}, "model.rope_theta_local=-1.0 must be above 0"),
        ({"norm_eps": -1e-5}, "model.norm_eps=-1e-05 must be at least 0"),
        ({"norm_eps": float("nan")}, "model.norm_eps=nan must be at least 0"),
        ({"init_std": -0.02}, "model.init_std=-0.02 must be at least 0"),
        ({"attention_scale": 0.0}, "model.attention_scale=0.0 must be above 0"),
        ({"attention_softcap": 0.0}, "model.attention_softcap=0.0 must be above 0"),
        ({"logit_softcap": float("inf")}, "model.logit_softcap=inf must be above 0"),
        ({"logit_divisor": "2"}, "model.logit_divisor='2' must be a number"),
        ({"residual_multiplier": float("nan")}, "model.residual_multiplier=nan must be finite"),
        ({"norm": "batch"}, "model.norm='batch' is not known: choose one of rms, layer"),
        (
            {"norm_placement": "both"},
            "model.norm_placement='both' is not known: choose one of pre, output, sandwich, post",
        ),
        ({"position": "sinusoid"}, "model.position='sinusoid' is not known: choose one of rope, learned, alibi, none"),
        ({"activation": "swish"}, "model.activation='swish' is not known: choose one of silu"),
        ({"qk_norm": "all"}, "model.qk_norm='all' is not known: choose one of none, head, full"),
        ({"layer_pattern": ()}, "model.layer_pattern=()"),
        ({"layer_pattern": ("locale",), "window": 4}, "model.layer_pattern=('locale',)"),
        ({"layer_pattern": ("local",)}, "set model.window"),
        ({"layer_pattern": ("local",), "window": 0}, "set model.window"),
        ({"rope_pattern": ()}, "model.rope_pattern=()"),
        ({"rope_fraction": 0.4}, "model.rope_fraction=0.4 of model.head_dim=8 is 3"),
        ({"rope_fraction": 0.1}, "model.rope_fraction=0.1 of model.head_dim=8 is 0"),
        ({"rope_fraction": 1.5}, "model.rope_fraction=1.5 must be above 0 and at most 1"),
        ({"shared_norm": True}, "model.shared_norm=True needs model.parallel_residual=True"),
        ({"parallel_residual": True, "norm_placement": "post"}, "model.norm_placement='pre'"),
        ({"rope_scaling": {"kind": "ntk"}}, "model.rope_scaling.kind='ntk' is not known: choose one of linear"),
        ({"rope_scaling": {"kind": "yarn"}}, "model.rope_scaling.original_context_length=0 must be above 0"),
        ({"rope_scaling": {"kind": "linear", "factor": 0}}, "model.rope_scaling.factor=0 must be above 0"),
        ({"rope_scaling": LONGROPE}, "model.rope_scaling.long_factor lists 3 numbers: it needs 4"),
        (
            {"rope_scaling": {"kind": "llama3", "original_context_length": 8, "low_freq_factor": 4.0}},
            "low_freq_factor=4.0 must be below high_freq_factor=4.0",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_numbers(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ModelConfig(**SMALL | changes)


@pytest.mark.parametrize("unset", [None, 0])
def test_sizes_that_follow_may_be_left_out_or_zero(unset):
    assert ModelConfig(**SMALL, num_kv_heads=unset, head_dim=unset) == ModelConfig(**SMALL)


def test_defaults_that_other_fields_decide():
    assert ModelConfig(**SMALL).softmax_scale == 8**-0.5
    assert ModelConfig(**SMALL, attention_scale=0.25).softmax_scale == 0.25
    assert ModelConfig(**SMALL).table_dim == ModelConfig(**SMALL, embedding_projection_dim=0).table_dim == 32
    assert ModelConfig(**SMALL, embedding_projection_dim=16).table_dim == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"attention_scale": 8**-0.5}),
        ({}, {"ffn_dim": (48,) * 4}),
        ({}, {"embedding_projection_dim": 32}),
        ({}, {"init_std": 0.5, "init_scale_residual": False}),
        ({}, {"window": 5}),  # of no layer
        ({"window": 5, "layer_pattern": ("local",)}, {"window": 5, "layer_pattern": ("local", "local")}),
        ({"position": "none"}, {"position": "none", "rope_theta": 7.0, "rope_fraction": 0.5}),
        ({"rope_pattern": (True, False)}, {"rope_pattern": (True, False, True, False)}),
        ({"rope_pattern": (False,)}, {"rope_pattern": (False, False), "rope_theta": 7.0}),
        ({"position": "rope"}, {"position": "rope", "position_offset": 2}),
        ({"rope_theta": 7.0, "rope_theta_local": 5.0}, {"rope_theta": 7.0}),  # of no layer
        (
            {"rope_scaling": RopeScaling("yarn", 8.0, 8)},
            {"rope_scaling": RopeScaling("yarn", 8.0, 8, attention_factor=1.2079441541679836)},
        ),
        (
            {"qk_norm": "head", "rope_pattern": (False,)},
            {"qk_norm": "head", "rope_pattern": (False,), "qk_norm_after_rope": True},
        ),
    ],
)
def test_two_spellings_of_one_network_do_not_differ(one, other):
    a, b = ModelConfig(**SMALL | one), ModelConfig(**SMALL | other)
    assert a.differences(b) == b.differences(a) == {}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_field_that_changes_the_network_is_a_difference(name):
    changes = {
        "vocab_size": 62,
        "num_layers": 2,
        "embed_dim": 64,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 16,
        "ffn_dim": 40,
        "window": 3,
        "layer_pattern": ("global", "local"),
        "rope_pattern": (True, False),
        "position": "alibi",
        "activation": "relu",
        "norm": "layer",
        "norm_placement": "post",
        "qk_norm": "head",
        "rope_scaling": RopeScaling("linear", factor=2.0),
        "embedding_projection_dim": 8,
        "block_repeats": 2,
        "rope_fraction": 0.5,
        "position_offset": 1,
        "context_length": 7,
        "shared_norm": False,
    }
    base = ModelConfig(**SMALL | {"window": 5, "layer_pattern": ("local", "global"), "rope_theta_local": 5.0})
    if position := {"position_offset": "learned", "alibi_max_bias": "alibi"}.get(name):
        base = dataclasses.replace(base, position=position)
    if name == "qk_norm_after_rope":
        base = dataclasses.replace(base, qk_norm="head")
    if name == "shared_norm":
        base = dataclasses.replace(base, parallel_residual=True, shared_norm=True)
    now = getattr(base, name)
    value = changes.get(name, not now if isinstance(now, bool) else 0.5 if now != 0.5 else 0.25)
    other = dataclasses.replace(base, **{name: value})
    if name in ("init_std", "init_scale_residual"):
        assert not base.differences(other)
        return
    found = base.differences(other)
    under = {"layer_pattern": "window", "rope_pattern": "rope_theta", "rope_theta_local": "rope_theta"}.get(name, name)
    assert under in found and found[under] == tuple(reversed(other.differences(base)[under]))
    assert not base.differences(other, ignore=found)


def test_differences_may_be_left_out_or_be_within_a_tolerance():
    a, b = ModelConfig(**SMALL, norm_eps=1e-5), ModelConfig(**SMALL, norm_eps=1.0000001e-5, context_length=9)
    assert a.differences(b) == {"norm_eps": (1e-5, 1.0000001e-5), "context_length": (2048, 9)}
    assert a.differences(b, rel_tol=1e-6) == {"context_length": (2048, 9)}
    assert a.differences(b, rel_tol=1e-6, ignore=["context_length"]) == {}
    scaled = [dataclasses.replace(a, rope_scaling=RopeScaling("linear", factor=f)) for f in (2.0, 2.0000001)]
    assert scaled[0].differences(scaled[1]) and not scaled[0].differences(scaled[1], rel_tol=1e-6)


def test_a_config_is_read_and_counted_without_jax():
    code = """
import sys
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.models.families import model_config
from slmjax.sharding.config import MeshConfig
count_parameters(model_config("gpt2")), MeshConfig().sizes(8)
sys.exit("jax" in sys.modules or "numpy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rope_scaling_may_be_a_plain_dict():
    as_dict = {"kind": "linear", "factor": 2.0}
    assert ModelConfig(**SMALL, rope_scaling=as_dict).rope_scaling == RopeScaling("linear", factor=2.0)
