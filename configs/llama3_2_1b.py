"""Llama-3.2-1B's shape (1.24B parameters, tied, llama3-scaled RoPE), from scratch.

Cost: Chinchilla's 20 tokens per parameter are 25B tokens, 1.9e20 FLOPs at T=2048: about 6 days on one H100 or 2 days on
a v5e-16, both at 40% MFU (calculated). The vocabulary is the released tokenizer's: set data.tokenizer to it.
Run: slmjax train --config configs/llama3_2_1b.py --workdir runs/llama --config.data.cache_dir=/corpus/corpus
"""

from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config


def get_config():
    config = default_config(model_config("llama-3.2-1b"))
    config.data.sequence_length = 2048
    config.training.batch_size = 256
    config.schedule.peak = 6e-4
    config.schedule.warmup_steps = 1000
    return config
