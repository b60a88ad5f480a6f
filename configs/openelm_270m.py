"""OpenELM-270M's shape: layer-wise scaled heads and feed-forward widths, so sixteen segments of one layer each.

Cost: Chinchilla's 20 tokens per parameter are 5.4B tokens, 9.9e18 FLOPs: about 7 hours on one H100 at 40% MFU
(calculated). The published model saw 1.5T tokens (5,525 per parameter). Its tokenizer is Llama-2's: set data.tokenizer
to that .model.
Run: slmjax train --config configs/openelm_270m.py --workdir runs/openelm --config.data.sources.mine.path=/data/text
"""

from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config


def get_config():
    config = default_config(model_config("openelm-270m"))
    config.data.sequence_length = 2048
    config.training.batch_size = 128
    config.schedule.peak = 5.3e-3
    config.schedule.warmup_steps = 5000
    return config
