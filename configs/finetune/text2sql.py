"""Questions about the geography of the United States to SQL: SmolLM2-135M-Instruct, by any method of fine-tuning.

Write the records, train with the method behind the colon, and run the answers against the database:
    slmjax data records --task text2sql --data-dir text2sql_geography --output text2sql
    slmjax train --config configs/finetune/text2sql.py:lora --workdir runs/text2sql-lora \
        --config.peft.base=SmolLM2-135M-Instruct.Q4_1.gguf
    slmjax evaluate --model runs/text2sql-lora --tasks text2sql --data-dir text2sql_geography --output result.json

There are 548 records of 37 tokens on average, 24 of them SQL; an epoch is 80 rows of 256 tokens. A step is one row,
because with so few records the number of steps matters: after two epochs at 1e-3, LoRA's loss on the development set is
0.207 in 160 steps of one row and 0.384 in 40 steps of four; at 2e-3 it is 0.189. Soft prompts need a far larger
learning rate than LoRA and start from the vectors of real tokens. Results of every method: benchmarks/RESULTS.md.
"""

from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError, did_you_mean
from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config, set_budget

# method -> learning rate, and what else is set in the section peft
METHODS = {
    "full": (1e-4, {}),
    "lora": (2e-3, {"lora": {"r": 8, "alpha": 16.0}}),
    "dora": (2e-3, {"method": "lora", "lora": {"r": 8, "alpha": 16.0, "dora": True}}),
    "freeze": (2e-4, {"freeze": {"last_layers": 10}}),
    "adapter": (1e-3, {"adapter": {"kind": "pfeiffer", "reduction_factor": 8}}),
    "prefix": (1e-2, {"prefix": {"num_virtual_tokens": 20}}),
    "prompt": (3e-2, {"prompt": {"num_virtual_tokens": 20}}),
    "p_tuning": (1e-3, {"p_tuning": {"num_virtual_tokens": 20}}),
    "ia3": (1e-2, {}),
}


def get_config(method: str = "lora"):
    if method not in METHODS:
        raise UserError(f"configs/finetune/text2sql.py has no method {method!r}; {did_you_mean(method, METHODS)}")
    rate, sections = METHODS[method]
    config = default_config(model_config("smollm2-135m"), data=SftConfig)
    set_budget(config, steps=160)
    config.peft.method = method
    config.peft.update(sections)
    config.peft.base = "SmolLM2-135M-Instruct.Q4_1.gguf"
    config.data.sources.train = {"path": "text2sql/train.jsonl"}
    config.data.validation.dev = {"path": "text2sql/dev.jsonl"}
    config.data.sequence_length = 256
    config.training.batch_size = 1
    config.training.eval_every = 80
    config.training.eval_batches = 0
    config.training.log_every = 10
    config.checkpoint.every = 1000
    config.schedule.peak = rate
    config.schedule.warmup_steps = 10
    config.optimizer.weight_decay = 0.0
    return config
