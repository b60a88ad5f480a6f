"""Miniatures of every named model: the same switches, a handful of dimensions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.families.registry import FAMILIES, model_config
from tests.tiny import param_shapes


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit`: tests/conftest.py has every program compiled with little effort."""
    return jax.jit


def miniature(config: ModelConfig) -> ModelConfig:
    """The switches of `config` on a network of a few thousand parameters; numbers that pick no code path are evened."""
    layers = 4 if len(config.rope_pattern) > 1 or isinstance(config.num_heads, tuple) else 2
    heads, kv_heads, ffn_dim = 4, {1: 1, config.num_heads: 4}.get(config.num_kv_heads, 2), 40
    if isinstance(config.num_heads, tuple):
        heads, kv_heads, ffn_dim = (4, 4, 8, 8), (1, 1, 2, 2), (16, 24, 32, 40)
    pattern = config.layer_pattern
    if len(set(pattern)) == 2:
        pattern, layers = ("local", "global"), 4
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        factors = {"short_factor": scaling.short_factor[:4], "long_factor": scaling.long_factor[-4:]}
        scaling = dataclasses.replace(scaling, **factors)
    return dataclasses.replace(
        config,
        vocab_size=67,
        num_layers=layers,
        embed_dim=32,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=8,
        ffn_dim=ffn_dim,
        context_length=32,
        window=None if config.window is None else 4,
        layer_pattern=pattern,
        norm_eps=1e-5,
        rope_theta=100.0,
        rope_scaling=scaling,
        rope_theta_local=None if config.rope_theta_local is None else 10.0,
        rope_fraction=0.5 if config.rope_fraction < 1 else 1.0,
        embedding_projection_dim=None if config.embedding_projection_dim is None else 16,
        embedding_multiplier=1.0 if config.embedding_multiplier == 1 else 2.0,
        residual_multiplier=1.0 if config.residual_multiplier == 1 else 0.5,
        logit_divisor=1.0 if config.logit_divisor == 1 else 3.0,
        init_std=0.02,
    )


def miniatures() -> dict[str, ModelConfig]:
    """One named model for each distinct set of switches."""
    found: dict[ModelConfig, str] = {}
    for _, sizes in FAMILIES.values():
        for name in sizes:
            found.setdefault(miniature(model_config(name)), name)
    found[dataclasses.replace(miniature(model_config("qwen3-0.6b")), qk_norm_after_rope=True)] = "hunyuan"
    return {name: config for config, name in found.items()}


# Between them these hold the switches that change what attends to what; tests that compile are slow for the others.
CORE = {"gpt2", "opt-350m", "bloom-560m", "falcon-rw-1b", "falcon-7b", "pythia-14m"}
CORE |= {"mistral-7b-v0.1", "mobilellm-125m-layer-share", "smollm3-3b", "gemma-2-2b", "gemma-3-270m", "olmo-2-1b"}
CORE |= {"openelm-270m"}


def pytest_generate_tests(metafunc):
    """`tiny` is each miniature; `config` too, but slow for those outside CORE."""
    for argument in {"tiny", "config"} & set(metafunc.fixturenames):
        parameters = []
        for name, config in miniatures().items():
            marks = [pytest.mark.slow] if argument == "config" and name not in CORE else []
            parameters.append(pytest.param(config, id=name, marks=marks))
        metafunc.parametrize(argument, parameters)


@pytest.fixture(scope="session")
def random_params():
    """Parameters of a config, all of them random: neither a bias nor a gain is left at its neutral value."""

    def make(config: ModelConfig, seed: int = 0, std: float = 0.3) -> dict:
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            center = 1.0 if path[-1].key == "scale" and not config.norm_unit_offset else 0.0
            return jnp.asarray(center + std * rng.standard_normal(leaf.shape), jnp.float32)

        return jax.tree_util.tree_map_with_path(draw, param_shapes(config))

    return make
