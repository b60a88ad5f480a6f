"""What converted files of EXAONE-4, OLMo-3, Hunyuan and ERNIE-4.5 say of their networks, as llama.cpp converts them."""

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.formats.gguf.architectures import config_from, written_as
from slmjax.formats.gguf.archs import BY_NAME
from slmjax.models.config import ModelConfig, RopeScaling

SIZE = {"vocab_size": 40, "num_layers": 5, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}
ODD = (False, True, True, False, True)
OLMO2 = {**SIZE, "norm_placement": "output", "norm_scale_float32": True, "qk_norm": "full", "tie_embeddings": False}
EXAONE4 = {**SIZE, "norm_placement": "output", "qk_norm": "head"}


def read(switches: dict, arch: str, **keys) -> ModelConfig:
    """The config that a file of this network gives with some keys added, None: removed."""
    config = ModelConfig(**switches)
    model = written_as(config, BY_NAME[arch])
    metadata = model.metadata | {f"{arch}.{key.replace('__', '.')}": value for key, value in keys.items()}
    shapes = {entry.name: () for entry in model.entries} | {"token_embd.weight": (40, 32)}
    return config_from({k: v for k, v in metadata.items() if v is not None}, shapes, model.constants.get, "x.gguf")


def windows(config: ModelConfig) -> list:
    return [spec.window for spec in config.layers]


def rotates(config: ModelConfig) -> list:
    return [spec.rope is not None for spec in config.layers]


@pytest.mark.parametrize(
    ("pattern", "local"),
    [
        (None, (True, True, True, False, True)),  # llama.cpp's own
        (2, (True, False, True, False, True)),
        (np.array(ODD), ODD),
        (np.zeros(5, bool), (False,) * 5),
        (np.ones(5, bool), (True,) * 5),
    ],
)
def test_layers_have_windows_by_a_period_or_one_by_one(pattern, local):
    keys = {"attention__sliding_window": 8, "attention__sliding_window_pattern": pattern}
    expected = [8 if is_local else None for is_local in local]
    olmo, exaone = read(OLMO2, "olmo2", **keys), read(EXAONE4, "exaone4", **keys)
    assert windows(olmo) == windows(exaone) == expected
    assert rotates(olmo) == [True] * 5 and rotates(exaone) == list(local)


@pytest.mark.parametrize("pattern", [np.array(ODD[:4]), np.arange(5), "LLLG", 0, 2**31])
def test_a_pattern_of_other_layers_is_refused(pattern):
    with pytest.raises(UserError, match=r"x\.gguf.*olmo2\.attention\.sliding_window_pattern"):
        read(OLMO2, "olmo2", attention__sliding_window=8, attention__sliding_window_pattern=pattern)


def test_without_a_window_every_layer_rotates():
    config = read(EXAONE4, "exaone4")
    assert windows(config) == [None] * 5 and rotates(config) == [True] * 5


@pytest.mark.parametrize("factor", [None, 1.0, 1.2079441547393799])  # the last as the converter of OLMo-3 writes it
def test_layers_with_a_window_have_the_theta_and_not_the_scaling(factor):
    yarn = RopeScaling("yarn", 8.0, 16)
    switches = {**OLMO2, "rope_theta": 5e5, "rope_scaling": yarn}
    config = read(switches, "olmo2", attention__sliding_window=8, rope__scaling__attn_factor=factor)
    assert [config.ropes[spec.rope] for spec in config.layers] == [
        (5e5, yarn if spec.window is None else None) for spec in config.layers
    ]


def test_another_temperature_is_refused():
    switches = {**OLMO2, "rope_scaling": RopeScaling("yarn", 8.0, 16)}
    with pytest.raises(UserError, match="attn_factor is not 1"):
        read(switches, "olmo2", rope__scaling__attn_factor=1.1)


def test_ernie_is_a_llama_that_both_lay_out_alike():
    biases = dict.fromkeys(("qkv_bias", "attention_output_bias", "ffn_bias"), True)
    for more in ({}, {**biases, "head_dim": 12, "tie_embeddings": False}):
        config = ModelConfig(**SIZE, **more)
        assert read({**SIZE, **more}, "ernie4_5") == config
        ernie, llama = (written_as(config, BY_NAME[arch]).entries for arch in ("ernie4_5", "llama"))
        x = np.random.default_rng(0).normal(size=(48, 32)).astype(np.float32)
        assert [e.name for e in ernie] == [e.name for e in llama]
        for a, b in zip(ernie, llama, strict=True):
            if a.name.endswith("attn_q.weight"):
                rows = x[: 4 * config.head_dim]
                np.testing.assert_array_equal(a.split(rows)[0], b.split(rows)[0])


def test_hunyuan_normalizes_after_it_rotates():
    config = read({**SIZE, "qk_norm": "head", "qk_norm_after_rope": True, "head_dim": 16}, "hunyuan-dense")
    assert (config.qk_norm, config.qk_norm_after_rope, config.head_dim) == ("head", True, 16)


@pytest.mark.parametrize(("arch", "word"), [("gemma3n", "residual streams"), ("lfm2", "short convolutions")])
def test_architectures_of_another_kind_are_refused_with_the_reason(arch, word):
    with pytest.raises(UserError, match=f"architecture '{arch}', which cannot be read, because .*{word}.*: choose"):
        config_from({"general.architecture": arch}, {}, {}.get, "x.gguf")
