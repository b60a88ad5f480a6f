"""ModelConfig: segments that expand to the layers, round trips, and mistakes refused with the key and the numbers."""

import dataclasses
import json
import re

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
        ({"ffn_dim": (8, 8)}, "model.ffn_dim lists 2 layers but model.num_layers is 4"),
        ({"ffn_dim": (8, 8, 0, 8)}, "model.ffn_dim=(8, 8, 0, 8) must be at least 1"),
        ({"ffn_dim": ()}, "model.ffn_dim lists 0 layers but model.num_layers is 4"),
        ({"vocab_size": 0}, "model.vocab_size=0 must be at least 1"),
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"embed_dim": 0}, "model.embed_dim=0 must be at least 1"),
        ({"head_dim": -8}, "model.head_dim=-8 must be at least 1"),
        ({"context_length": 0}, "model.context_length=0 must be at least 1"),
        ({"block_repeats": 0}, "model.block_repeats=0 must be at least 1"),
        ({"norm": "batch"}, "model.norm is 'batch'; choose one of rms, layer"),
        ({"norm_placement": "both"}, "model.norm_placement is 'both'; choose one of pre, output, sandwich, post"),
        ({"position": "sinusoid"}, "model.position is 'sinusoid'; choose one of rope, learned, alibi, none"),
        ({"activation": "swish"}, "model.activation is 'swish'; choose one of silu"),
        ({"qk_norm": "all"}, "model.qk_norm is 'all'; choose one of none, head, full"),
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
        ({"rope_scaling": {"kind": "ntk"}}, "model.rope_scaling.kind is 'ntk'; choose one of linear"),
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


def test_rope_scaling_may_be_a_plain_dict():
    as_dict = {"kind": "linear", "factor": 2.0}
    assert ModelConfig(**SMALL, rope_scaling=as_dict).rope_scaling == RopeScaling("linear", factor=2.0)
