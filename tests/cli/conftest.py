"""A fine-tune from the shell: a tiny base, conversations, a config."""

import json

import jax
import numpy as np
import pytest

import slmjax
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.tokenization.tokenizer import train_bpe

MODEL = {"vocab_size": 300, "num_layers": 2, "embed_dim": 16, "num_heads": 2, "ffn_dim": 32, "context_length": 128}
CONFIG = f"""
from slmjax.data.sft_config import SftConfig
from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config, set_budget

def get_config():
    config = default_config(ModelConfig(**{MODEL}), data=SftConfig)
    set_budget(config, steps=3)
    config.peft.method = "lora"
    config.peft.lora.r = 2
    config.data.sequence_length = 64
    config.data.chat_template = "plain"
    config.data.on_long = "truncate"
    config.data.validation_fraction = 0.2
    config.training.batch_size = 8
    config.schedule.peak = 0.05
    return config
"""


@pytest.fixture
def ready(tmp_path):
    """The arguments of a run: a base, records, a config."""
    config = ModelConfig(**MODEL)
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    tokenizer = train_bpe(["what is a cat? a small animal. "] * 8, 290, progress=False)
    slmjax.save(LanguageModel(config=config, params=params, tokenizer=tokenizer), tmp_path / "base")
    turns = [{"role": "user", "content": "what is a cat?"}, {"role": "assistant", "content": "a small animal."}]
    lines = [json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, *turns[1:]]}) for n in range(20)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    (tmp_path / "config.py").write_text(CONFIG)
    return [
        *("train", "--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")),
        f"--config.peft.base={tmp_path / 'base'}",
        f"--config.data.sources.chats.path={tmp_path / 'chats.jsonl'}",
    ]
