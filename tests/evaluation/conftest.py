import jax
import numpy as np
import pytest

from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.tokenization.tokenizer import train_bpe


@pytest.fixture(scope="session")
def talker():
    """A small model of random weights that knows the words of questions."""
    tokenizer = train_bpe(
        ["question: where is ohio\nsql: select name", "Answer: yes no maybe"] * 4, 280, progress=False
    )
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "ffn_dim": 16, "context_length": 512}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, **sizes)
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    return LanguageModel(config=config, params=params, tokenizer=tokenizer)
