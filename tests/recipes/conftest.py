"""The recipes of the package on a tiny run."""

import dataclasses

import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.peft.config import PeftConfig
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.train import make_recipe
from tests.evaluation import miniatures
from tests.tiny_run import assert_bitwise_equal, built_once, make_base, saved, tiny_config, tiny_text

__all__ = ["assert_bitwise_equal", "built_once", "saved", "tiny_config", "tiny_text"]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """small_run(**{"training.x": ...}): a config of 6 steps on two of the devices, with a text and a general text."""
    rng, place = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for name, words in (("text", "river stone light walk under the old"), ("general", "sea sky runs a blue on far")):
        lines = (" ".join(rng.choice(words.split(), 12)) for _ in range(150))
        (place / f"{name}.txt").write_text("\n\n".join(lines))

    def make(**changes):
        config = default_config(
            ModelConfig(vocab_size=300, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=24, context_length=32)
        )
        config.data.sources.text = {"path": str(place / "text.txt")}
        config.data.tokenizer, config.data.cache_dir = "train:280", str(place / "cache")
        config.data.sequence_length, config.data.validation_fraction = 16, 0.2
        config.training.batch_size, config.training.log_every = 8, 1
        config.training.eval_every, config.training.eval_batches = 3, 1
        config.checkpoint.every = 2
        set_budget(config, steps=6)
        for key, value in changes.items():
            section, name = key.split(".")
            config[section][name] = value
        return run_config(config), place / "general.txt"

    return make


@pytest.fixture(scope="session")
def pretraining(small_run):
    """The recipe of pretraining, with an average of the weights, samples and early stopping."""
    changes = {"training.ema_decay": 0.5, "training.samples": 1, "training.sample_tokens": 4}
    config, _ = small_run(**changes, **{"training.early_stopping": 50, "training.accumulation": 1})
    return lambda workdir: make_recipe(config, workdir)


@pytest.fixture(scope="session")
def finetuning(small_run):
    """The recipe of fine-tuning with everything against forgetting."""
    config, general = small_run(**{"schedule.name": "constant"})
    config = dataclasses.replace(
        config,
        peft=PeftConfig(method="lora", base="somewhere", train=("final_norm/scale",)),
        forgetting=ForgettingConfig(
            corpus=str(general), tokens=64, replay=0.25, l2_sp=0.1, ewc=0.1, kl=0.2, kl_on="general", fisher_rows=4
        ),
    )

    def make(workdir):
        return make_recipe(config, workdir, base=make_base(config))

    return make


@pytest.fixture(scope="session")
def task_files(tmp_path_factory):
    """A directory with the data of tasks of the harness, invented and few."""
    return miniatures.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def finetuning_on_tasks(small_run, task_files):
    """The recipe of fine-tuning that is scored on tasks: choices, a perplexity, generation."""
    pytest.importorskip("lm_eval")
    config, general = small_run(
        **{
            "schedule.name": "constant",
            "training.ema_decay": 0.5,
            "training.tasks": {
                "names": ("arc_easy", "lambada_openai"),
                "every": 2,
                "limit": 3,
                "data_dir": str(task_files),
            },
        }
    )
    config = dataclasses.replace(
        config,
        peft=PeftConfig(method="lora", base="somewhere"),
        forgetting=ForgettingConfig(corpus=str(general), tokens=64, tasks=("sciq",)),
    )
    return lambda workdir: make_recipe(config, workdir, base=make_base(config))
