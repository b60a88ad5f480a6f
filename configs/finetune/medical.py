"""Medical questions and answers: SmolLM2-135M-Instruct on MedQuAD, or on PubMedQA's yes, no and maybe.

    slmjax train --config configs/finetune/medical.py:medquad --workdir runs/medquad \
        --config.peft.base=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.sources.train.path=medquad.jsonl.gz

    slmjax data records --task pubmedqa --data-dir pubmedqa --output records
    slmjax train --config configs/finetune/medical.py:pubmedqa --workdir runs/pubmedqa \
        --config.peft.base=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.sources.train.path=records/train.jsonl
    slmjax evaluate --model runs/pubmedqa --tasks pubmedqa --data-dir pubmedqa

MedQuAD is judged by the loss on the answers to held-out questions, PubMedQA by the accuracy on its 500 test questions,
where always answering yes reaches 55.2%. The method is LoRA; set --config.peft.method and a learning rate for others.
"""

from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError, did_you_mean
from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config, set_budget

# data -> steps, rows of a batch, tokens of a row, the records' own names of prompt and completion
DATA = {
    "medquad": (200, 8, 256, {"prompt": "question", "completion": "answer"}),
    "pubmedqa": (120, 4, 512, {}),
}


def get_config(data: str = "medquad"):
    if data not in DATA:
        raise UserError(f"configs/finetune/medical.py has no data {data!r}; {did_you_mean(data, DATA)}")
    steps, rows, length, fields = DATA[data]
    config = default_config(model_config("smollm2-135m"), data=SftConfig)
    set_budget(config, steps=steps)
    config.peft.method = "lora"
    config.peft.base = "SmolLM2-135M-Instruct.Q4_1.gguf"
    config.data.sources.train = {"path": f"{data}.jsonl", "fields": fields}
    config.data.sequence_length = length
    config.data.on_long = "truncate"
    config.data.on_invalid = "skip"  # MedQuAD has questions without an answer
    config.training.batch_size = rows
    config.training.eval_every = 40
    config.training.eval_batches = 16
    config.schedule.peak = 5e-4
    config.schedule.warmup_steps = 10
    config.optimizer.weight_decay = 0.0
    return config
