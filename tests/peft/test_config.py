"""The section peft: keys of earlier versions, and no jax for a mistake to be told."""

import dataclasses
import subprocess
import sys

import pytest

from slmjax.cli.shared.config_files import apply_override
from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.peft.config import OLD_KEYS, FreezeConfig, PeftConfig
from slmjax.recipes.config import default_config, run_config


def at(config: PeftConfig, key: str):
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


@pytest.mark.parametrize("old", OLD_KEYS)
def test_a_key_of_an_earlier_version_means_what_it_is_called_today(old):
    section, _, name = old.rpartition(".")
    value = ["lm_head/kernel"] if name == "train" else 7
    config = PeftConfig(method=section, **{section: {name: value}})
    assert at(config, OLD_KEYS[old]) == (tuple(value) if name == "train" else value)
    stored = dataclasses.asdict(config)
    assert PeftConfig(**stored) == config  # and is stored under today's name
    assert old.rpartition(".")[2] not in stored[section]


def test_what_an_earlier_version_stored_is_the_same_config():
    """All keys as they were then, whatever the method."""
    old = {
        "method": "lora",
        "base": "somewhere",
        "train": ["final_norm/scale"],
        "lora": {"r": 4, "targets": ["q_proj"], "rank_pattern": [["q_proj", 2]], "plus_ratio": 16.0},
        "adapter": {"kind": "houlsby", "reduction": 16, "activation": "silu", "scale": 1.0},
        "prefix": {"num_tokens": 20, "init": "vocabulary"},
        "p_tuning": {"num_tokens": 20, "encoder": "mlp"},
        "freeze": {"train": ["lm_head/kernel"], "first_layers": 0, "last_layers": 0},  # of another method: unused
    }
    lora = {"r": 4, "targets": ("q_proj",), "rank_pattern": (("q_proj", 2),), "loraplus_lr_ratio": 16.0}
    today = PeftConfig(
        method="lora", base="somewhere", train=("final_norm/scale",), lora=lora, adapter={"kind": "houlsby"}
    )
    assert PeftConfig(**old) == today


def test_what_freezing_trains_stands_under_one_key():
    old = PeftConfig(method="freeze", freeze={"train": ["lm_head/kernel"], "last_layers": 2})
    assert old == PeftConfig(method="freeze", train=("lm_head/kernel",), freeze=FreezeConfig(last_layers=2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora": {"rank": 4}}, r"unknown key peft\.lora\.rank; "),
        ({"prefix": {"num_token": 4}}, r"unknown key peft\.prefix\.num_token; did you mean 'num_virtual_tokens'\?"),
        ({"lora": {"plus_ratio": 4.0, "loraplus_lr_ratio": 2.0}}, r"peft\.lora\.loraplus_lr_ratio is given twice"),
        ({"adapter": {"activation": "tanh"}}, "choose one of silu"),
        ({"method": "full", "train": ("lm_head/kernel",)}, r"peft\.train has no effect"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        PeftConfig(**config)


@pytest.mark.parametrize("module", ["slmjax.peft.config", "slmjax.training.checkpoints.config"])
def test_a_config_needs_no_jax(module):
    code = f"import sys, {module}; print(sorted({{'jax', 'flax', 'numpy', 'orbax'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("old", OLD_KEYS)
def test_a_config_file_may_set_a_key_of_an_earlier_version(old):
    section, _, name = old.rpartition(".")
    value = ("lm_head/kernel",) if name == "train" else 7
    configs = {}
    for key in (old, OLD_KEYS[old]):
        config = default_config(ModelConfig(vocab_size=8, num_layers=1, embed_dim=8, num_heads=1, ffn_dim=8))
        apply_override(config, f"--config.peft.method={section}")
        *parents, last = key.split(".")
        node = config.peft[parents[0]] if parents else config.peft
        if name == "train":
            node[last] = value
        else:
            apply_override(config, f"--config.peft.{key}={value}")
        configs[key] = run_config(config).peft
    assert configs[old] == configs[OLD_KEYS[old]] and at(configs[old], OLD_KEYS[old]) == value
