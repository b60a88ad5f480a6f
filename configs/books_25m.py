"""A 24.8M-parameter Llama shape on English books of your own; the path of their text is required.

Cost: Chinchilla's 20 tokens per parameter are 0.5B tokens (35 epochs of 60 MB of books, 14M tokens), 8.0e16 FLOPs: 3.4
minutes on one H100 at 40% MFU, 4.6 days on 2 CPU cores at 200 GFLOP/s (both calculated). Try it with few steps first.
Run: slmjax train --config configs/books_25m.py --workdir runs/books --config.training.steps=100
     --config.data.sources.books.path=books.jsonl.gz
"""

from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config


def get_config():
    config = default_config(
        ModelConfig(
            vocab_size=8192,
            num_layers=9,
            embed_dim=448,
            num_heads=7,
            num_kv_heads=7,
            ffn_dim=1152,
            context_length=512,
        )
    )
    config.data.tokenizer = "train:8192"
    config.data.sequence_length = 512
    config.training.batch_size = 32
    config.schedule.peak = 2e-3
    config.schedule.warmup_steps = 100
    return config
