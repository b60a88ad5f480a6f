"""SmolLM2-135M's shape and recipe (WSD, 1.05M tokens per batch), on text of your own.

Cost: at 15,600 tokens per parameter (the released model's over-training) 2.1T tokens, 2.1e21 FLOPs: 8 days on 8 H100
at 40% MFU. At Chinchilla's 20, the default here: 2.7B tokens, 2.7e18 FLOPs, 1.9 hours on one H100 (both calculated).
Run: slmjax train --config configs/smollm2_135m.py --workdir runs/smol --config.data.sources.mine.path='/data/*.parquet'
     --config.data.tokenizer=/path/to/tokenizer.json --config.training.tokens_per_param=200
"""

from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config


def get_config():
    config = default_config(model_config("smollm2-135m"))
    config.data.sequence_length = 2048
    config.training.batch_size = 512
    config.training.accumulation = 4
    config.optimizer.weight_decay = 0.01
    config.schedule.name = "wsd"
    config.schedule.peak = 3e-3
    config.schedule.warmup_steps = 2000
    config.schedule.decay_fraction = 0.2
    config.schedule.decay_shape = "linear"
    config.schedule.final_fraction = 0.0
    return config
