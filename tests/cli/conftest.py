"""A fine-tune from the shell: a tiny base, conversations, a config."""

import json
import shutil

import jax
import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny_run import built_once

__all__ = ["built_once"]
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


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A directory of a base that stops at two ids, records and a config."""
    folder = tmp_path_factory.mktemp("prepared")
    config = ModelConfig(**MODEL)
    params = jax.jit(Transformer(config).init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    tokenizer = train_bpe(["what is a cat? a small animal. "] * 8, 290, progress=False)
    slmjax.save(LanguageModel(config=config, params=params, tokenizer=tokenizer, stop_ids=(7, 9)), folder / "base")
    turns = [{"role": "user", "content": "what is a cat?"}, {"role": "assistant", "content": "a small animal."}]
    lines = [json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, *turns[1:]]}) for n in range(20)]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    (folder / "config.py").write_text(CONFIG)
    return folder


def arguments(folder):
    """The command line that trains in a copy of `prepared`."""
    return [
        *("train", "--config", str(folder / "config.py"), "--workdir", str(folder / "run")),
        f"--config.peft.base={folder / 'base'}",
        f"--config.data.sources.chats.path={folder / 'chats.jsonl'}",
    ]


@pytest.fixture
def ready(prepared, tmp_path):
    """The arguments of a run of one's own: a base, records, a config."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return arguments(tmp_path)


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """A directory where the run of `ready` has been trained, to be read."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    assert main(arguments(folder)) == 0
    return folder
