"""A run that cannot work is refused before anything is read, compiled or written: its workdir is not even made."""

import dataclasses

import pytest

from slmjax.errors import UserError
from slmjax.peft.config import PeftConfig
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.train import train
from tests.tiny_run import make_base

NO_VALIDATION = {"data.validation_fraction": 0.0}
MISTAKES = {
    "remat": ({"training.remat": "projection"}, r"training\.remat.*projections"),
    "attention": ({"training.attention": "splosh"}, r"training\.attention.*splash"),
    "a mesh that does not divide": ({"mesh.tensor": 3}, r"mesh\.tensor=3"),
    "a batch that does not divide": ({"training.batch_size": 6}, r"training\.batch_size=6 is not a multiple of 8"),
    "a warmup longer than the run": ({"schedule.warmup_steps": 7}, r"schedule\.warmup_steps"),
    "rows longer than the context": ({"data.sequence_length": 4096}, r"data\.sequence_length=4096"),
    "early stopping": (NO_VALIDATION | {"training.early_stopping": 2}, r"training\.early_stopping=2 .*validation"),
    "samples": (NO_VALIDATION | {"training.samples": 2}, r"training\.samples=2 .*validation"),
    "long samples": ({"training.samples": 1, "training.sample_tokens": 4096}, r"training\.sample_tokens=4096"),
    "a method without a base": ({"peft.method": "lora"}, r"peft\.base"),
}
OF_FINE_TUNES = {
    "targets": ({"lora": {"r": 2, "targets": ("no_such_projection",)}}, {}, r"no_such_projection"),
    "trained arrays": ({"train": ("no_such_array",)}, {}, r"no_such_array"),
    "l2_sp without weights": ({"method": "prefix"}, {"l2_sp": 1.0}, r"forgetting\.l2_sp"),
    "replay without a row left": ({}, {"replay": 0.95}, r"forgetting\.replay=0\.95"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_nothing_behind(mistake, tiny_config, tmp_path):
    changes, message = MISTAKES[mistake]
    config = tiny_config(**changes)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=""))  # it would be in data/
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mistake", OF_FINE_TUNES)
def test_a_mistake_of_a_fine_tune_leaves_nothing_behind(mistake, tiny_config, tmp_path):
    peft, held, message = OF_FINE_TUNES[mistake]
    config = tiny_config()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, cache_dir=""),
        peft=PeftConfig(**{"method": "lora", "base": "somewhere", "lora": {"r": 2}} | peft),
        forgetting=ForgettingConfig(**held),
    )
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", base=make_base(config))
    assert not (tmp_path / "run").exists()
