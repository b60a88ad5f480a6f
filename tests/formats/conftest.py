import pytest

from slmjax.formats.huggingface.export import save_huggingface
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny import initialized


@pytest.fixture(scope="session")
def lm():
    """A Qwen-3 of three layers, whose matrices divide among eight devices, with a chat template and two stop ids."""
    tokenizer = train_bpe(["the old river walks under the light of a stone"] * 4, 264, progress=False)
    tokenizer.settings |= {"chat_template": "{{ messages[0].content }}", "tokenizer_class": "TokenizersBackend"}
    config = ModelConfig(
        vocab_size=264,
        num_layers=3,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=2,
        ffn_dim=64,
        context_length=128,
        qk_norm="head",
        tie_embeddings=False,
    )
    params = initialized(config)
    return LanguageModel(config=config, params=params, tokenizer=tokenizer, stop_ids=(0, 7))


@pytest.fixture
def saved(lm, tmp_path):
    return save_huggingface(lm, tmp_path / "model")
