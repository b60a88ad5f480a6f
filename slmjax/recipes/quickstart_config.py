"""The config of `slmjax quickstart`; it is part of the package because the command must work where configs/ is not."""

from __future__ import annotations

from ml_collections import ConfigDict

from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config, set_budget

VOCAB_SIZE = 4096


def get_config() -> ConfigDict:
    """A small Llama, ~5 MB of Python's own text, two to four minutes on 2 CPU cores."""
    config = default_config(
        ModelConfig(
            vocab_size=VOCAB_SIZE,
            num_layers=4,
            embed_dim=256,
            num_heads=4,
            num_kv_heads=2,
            ffn_dim=704,
            context_length=256,
        )
    )
    config.data.sources.python = {"path": "python:stdlib?max_megabytes=5"}
    config.data.tokenizer = f"train:{VOCAB_SIZE}"
    config.data.sequence_length = 256
    config.data.validation_fraction = 0.05
    config.training.batch_size = 16
    config.training.eval_batches = 0
    config.training.eval_every = 60
    config.optimizer.name = "muon"
    config.schedule.name = "wsd"
    config.schedule.peak = 5e-3
    config.schedule.warmup_steps = 20
    config.schedule.decay_fraction = 0.3
    config.schedule.decay_shape = "linear"
    config.schedule.final_fraction = 0.0
    config.checkpoint.every = 120
    config.checkpoint.keep_last = 1
    set_budget(config, steps=120)
    return config
