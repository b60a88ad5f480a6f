"""Named models: exact numbers of parameters, as published and as initialized; the survey's KV-cache bars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters, kv_cache_bytes
from slmjax.models.families.registry import FAMILIES, families, model_config
from slmjax.models.transformer import Transformer

# Sizes of the released checkpoints.
PUBLISHED = {
    "gpt2": 124_439_808,
    "lamini-gpt-124m": 124_440_576,  # 768 numbers for one more token
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "pythia-14m": 14_067_712,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1.4b": 1_414_647_808,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "falcon-rw-1b": 1_311_625_216,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-mini-128k": 3_821_079_552,
    "llama-7b": 6_738_415_616,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "tinyllama-1.1b": 1_100_048_384,
    "prem-1b": 1_100_048_384,
    "prem-1b-chat": 1_100_064_768,
    "prem-1b-sql": 1_346_471_936,
    "deepseek-coder-1.3b": 1_346_471_936,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "gemma-2b": 2_506_172_416,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "olmo-1b": 1_176_764_416,
    "olmo-2-1b": 1_484_916_736,
    "stablelm-2-1.6b": 1_644_515_328,
    "minicpm-1b": 1_360_246_272,
    "minicpm-2b": 2_724_880_896,
    "granite-3.1-2b": 2_533_531_648,
    "h2o-danube3-500m": 513_590_784,
    "h2o-danube3-4b": 3_961_839_360,
    "mobilellm-125m": 124_635_456,
    "mobilellm-125m-layer-share": 124_635_456,
    "mobilellm-350m": 345_355_200,
    "dclm-1b": 1_439_893_504,  # with the 98,304 gains of its query and key norms
    "openelm-270m": 271_527_168,
    "openelm-450m": 457_179_136,
    "openelm-1.1b": 1_079_891_456,
    "openelm-3b": 3_036_647_424,
    "exaone-4.0-1.2b": 1_279_391_488,
    "olmo-3-7b": 7_298_011_136,
    "ernie-4.5-0.3b": 360_748_032,
    "gpt-neo-125m": 125_198_592,
    "tinystories-1m": 3_745_984,
    "gpt-j-6b": 6_050_882_784,
    "starcoderbase-1b": 1_137_207_296,
    "starcoder2-3b": 3_030_371_328,
    "mpt-7b": 6_649_286_656,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-0414": 9_400_279_040,
    "aya-expanse-8b": 8_028_033_024,
    "command-r7b": 8_028_033_024,
    "internlm2-1.8b": 1_889_110_016,
}

# MiB of the 16-bit KV cache at 2048 positions: the survey of small language models (arXiv:2409.15790, figure 13).
KV_MIB = {
    "smollm-135m": 45,
    "pythia-160m": 72,
    "openelm-270m": 31.5,  # printed as 32
    "smollm-360m": 80,
    "openelm-450m": 45.5,
    "qwen2-0.5b": 24,
    "qwen1.5-0.5b": 192,
    "bloom-560m": 192,
    "openelm-1.1b": 84.5,  # printed as 85
    "pythia-1.4b": 384,
    "phi-1": 384,
    "bloom-1b1": 288,
    "qwen2-1.5b": 56,
    "smollm-1.7b": 384,
    "qwen1.5-1.8b": 384,
    "gemma-2b": 36,
    "phi-2": 640,
    "pythia-2.8b": 640,
    "stablelm-3b": 640,
    "openelm-3b": 164,
}


def initialized_size(config: ModelConfig) -> int:
    """Sum of the sizes of what `init` makes, without making it."""
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_is_the_published_one(name):
    assert count_parameters(model_config(name)).total == PUBLISHED[name]


def test_count_without_embeddings_is_the_published_one():
    """MiniCPM (arXiv:2404.06395, table 2) prints both."""
    assert count_parameters(model_config("minicpm-1b")).non_embedding == 1_247_442_432
    assert count_parameters(model_config("minicpm-2b")).non_embedding == 2_442_057_984


def test_count_is_what_init_makes_for_every_set_of_switches(tiny):
    assert count_parameters(tiny).total == initialized_size(tiny)


@pytest.mark.parametrize("name", ["opt-350m", "openelm-270m", "gemma-3-1b", "falcon-7b"])
def test_count_is_what_init_makes_at_full_size(name):
    assert count_parameters(model_config(name)).total == initialized_size(model_config(name))


@pytest.mark.parametrize("name", KV_MIB)
def test_cache_is_as_large_as_the_survey_measured(name):
    mib = kv_cache_bytes(model_config(name), 2048, bytes_per_value=2) / 2**20
    assert mib == KV_MIB[name]


def test_openelm_scales_heads_and_ffn_with_depth():
    config = model_config("openelm-270m")
    assert config.num_heads == (12,) * 5 + (16,) * 7 + (20,) * 4
    ffn = "768 1024 1280 1536 1792 2048 2560 2816 3072 3328 3584 3840 4352 4608 4864 5120"
    assert config.ffn_dim == tuple(int(f) for f in ffn.split())


def test_names_are_unique_and_listed():
    names = [name for _, sizes in FAMILIES.values() for name in sizes]
    assert len(names) == len(set(names))
    listed = families()
    assert [name for sizes in listed.values() for name, _ in sizes] == names
    assert dict(listed["smollm2"])["smollm2-135m"] == PUBLISHED["smollm2-135m"]


def test_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match=r"'smolm2-135m' is not known: did you mean .*smollm2-135m"):
        model_config("smolm2-135m")
    with pytest.raises(UserError, match="the families are gpt2"):
        model_config("xyzzy")
    assert model_config("SmolLM2-135M") == model_config("smollm2-135m")
