import dataclasses

import pytest

from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny import initialized

SIZES = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48, "context_length": 256}


@pytest.fixture(scope="session")
def tokenizer():
    texts = ["the old river walks under the light of a stone", "über die alte Brücke 日本"] * 4
    return train_bpe(texts, 280, progress=False)


@pytest.fixture(scope="session")
def lm(tokenizer):
    """Random weights, large enough that the most likely token differs from place to place."""
    config = ModelConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, init_scale_residual=False, **SIZES)
    params = initialized(config)
    return LanguageModel(config=config, params=params, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def stretched(lm):
    """The same network with LongRoPE, which changes its frequencies beyond 70 tokens."""
    factors = {"short_factor": (1.0, 1.1, 1.3, 1.5), "long_factor": (2.0, 4.0, 6.0, 8.0)}
    scaling = RopeScaling("longrope", 4.0, 70, **factors)
    return LanguageModel(
        config=dataclasses.replace(lm.config, rope_scaling=scaling), params=lm.params, tokenizer=lm.tokenizer
    )
