"""LoRA on instructions, small enough to try: SmolLM2-135M-Instruct, rank 16 everywhere, 16 steps of 4 x 256 tokens.

A question is answered before, during and after training. Set the model and the records:
    slmjax train --config configs/finetune/alpaca_lora.py --workdir runs/alpaca \
        --config.peft.base=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.sources.alpaca.path=alpaca_en_999.json
For a longer run: --config.training.steps=200 --config.training.eval_every=50.
"""

from slmjax.data.sft_config import SftConfig
from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config, set_budget


def get_config():
    config = default_config(model_config("smollm2-135m"), data=SftConfig)
    set_budget(config, steps=16)
    config.peft.method = "lora"
    config.peft.base = "SmolLM2-135M-Instruct.Q4_1.gguf"
    config.peft.lora.r = 16
    config.data.sources.alpaca = {"path": "alpaca_en_999.json"}
    config.data.sequence_length = 256
    config.data.on_long = "truncate"
    config.training.batch_size = 4
    config.training.log_every = 4
    config.training.eval_every = 8
    config.training.eval_batches = 4
    config.training.sample_prompts = ("Why is the sky blue?",)
    config.forgetting.tokens = 2048
    config.schedule.peak = 5e-4
    config.schedule.warmup_steps = 4
    return config
