"""Any key of a config with any odd value: accepted, or refused in a sentence that names it; never anything else."""

import contextlib
import math
import random
import re

import pytest

from slmjax.cli.main import main
from slmjax.cli.shared.config_files import apply_override
from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError
from slmjax.inference.sampling import Sampling, require_seed
from slmjax.models.config import ModelConfig
from slmjax.recipes.check import check
from slmjax.recipes.config import default_config, run_config, set_budget

ODD = {
    "seeds": [-1, 2**63 - 1, 2**63, -(2**63) - 1, 10**24, 10**5000],
    "numbers": [0, -1, 1, 3, 0.5, -0.5, 1e-300, 1e300, -1e300, 1e400, -math.inf, math.nan, 2**40, 2**62],
    "kinds": [None, True, "", "x", "1", "ü\n", "\ud800", "a\0b", b"x", 1j, (), (1,), [1, "a"], ((),), {}, {"a": 1}],
    "deeper": [((1, 2), (3, 4)), (("q_proj", 1),), [[1.5]], {"path": 5}, {"a": {"path": ""}}, {1: 2}, {"kind": "yarn"}],
}


def tiny(data=None):
    """Plain values of a config that can be run."""
    model = ModelConfig(vocab_size=300, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=24, context_length=32)
    config = default_config(model, **({"data": data} if data else {}))
    config.data.sources.text = {"path": "nowhere.txt"}
    config.data.sequence_length, config.training.batch_size = 16, 8
    set_budget(config, steps=6)
    return config.to_dict()


def keys_of(values, prefix=()):
    for name, value in values.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from keys_of(value, (*prefix, name))


def with_value(values, key, odd):
    """A copy of nested values with another one at `key`."""
    first, *rest = key
    return {**values, first: with_value(values[first], rest, odd) if rest else odd}


def accepted(values, key):
    """The config, or None where it was refused; the sentence must be one."""
    try:
        return run_config(values)
    except UserError as error:
        told = str(error)
        assert told.endswith((".", "?")) and len(told) < 900, f"{key}: {told}"
        return None


def try_all(pairs, look):
    """How many (values, key, odd) are refused and how many pass and are looked at."""
    refused = taken = 0
    for values, key, odd in pairs:
        config = accepted(with_value(values, key, odd), ".".join(key))
        if config is None:
            refused += 1
            continue
        taken += 1
        with contextlib.suppress(UserError):
            look(config)
    assert refused and taken


def every_pair():
    """Each key of text's and of conversations' config with each odd value."""
    for values in (tiny(), tiny(SftConfig)):
        assert accepted(values, "as it is") is not None
        for key in keys_of(values):
            yield from ((values, key, odd) for group in ODD.values() for odd in group)


def test_keys_take_or_refuse_odd_values():
    try_all(random.Random(0).sample(list(every_pair()), 250), lambda config: config.total_steps)


@pytest.mark.slow
def test_every_key_takes_or_refuses_every_odd_value():
    try_all(every_pair(), lambda config: config.total_steps)


def largest_and_smallest(keys):
    """The numbers at both ends of what each key takes."""
    values = tiny()
    for key in keys:
        passing = [odd for odd in ODD["numbers"] if accepted(with_value(values, key, odd), key) is not None]
        yield from ((values, key, odd) for odd in {min(passing), max(passing)} if passing) if passing else ()


def test_what_keys_take_the_check_takes_or_refuses():
    """Shapes are made of the numbers, but no arrays."""
    keys = [("model", "ffn_dim"), ("training", "batch_size"), ("schedule", "peak"), ("mesh", "tensor")]
    try_all([(tiny(), ("model", "x"), 0), *largest_and_smallest(keys)], check)


@pytest.mark.slow
def test_what_each_key_takes_the_check_takes_or_refuses():
    try_all([(tiny(), ("model", "x"), 0), *largest_and_smallest(keys_of(tiny()))], check)


SEEDS = ["training.seed", "data.seed"]


@pytest.mark.parametrize("key", SEEDS)
@pytest.mark.parametrize("seed", [2**63, 10**24, -(10**24), 1.0, True, "1", (1,), math.nan])
def test_a_seed_is_a_whole_number_of_63_bits(key, seed):
    with pytest.raises(UserError, match=re.escape(key)):
        run_config(with_value(tiny(), key.split("."), seed))


@pytest.mark.parametrize("seed", [2**63, 10**24, -(10**24), 1.5, True, "1"])
def test_so_is_the_seed_of_sampling(seed):
    with pytest.raises(UserError, match="seed="):
        require_seed(seed)


@pytest.mark.parametrize("values", [{"temperature": "hot"}, {"top_k": 1.5}, {"top_p": (1,)}, {"min_p": math.nan}])
def test_settings_of_sampling_are_numbers(values):
    with pytest.raises(UserError, match=f"The setting {next(iter(values))}="):
        Sampling(**values)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.sample_prompts", "2024", ("2024",)),
        ("training.sample_prompts", "1,2", ("1", "2")),
        ("training.sample_prompts", "Once upon, a", ("Once upon, a",)),
        ("training.sample_prompts", "('a', 'b')", ("a", "b")),
        ("peft.lora.targets", "q_proj", ("q_proj",)),
        ("peft.lora.layers", "1,2", (1, 2)),
    ],
)
def test_a_text_that_looks_like_a_number_is_a_text_where_texts_are_wanted(key, text, value):
    config = default_config(ModelConfig(**tiny()["model"]))
    apply_override(config, f"--config.{key}={text}")
    *sections, name = key.split(".")
    node = config
    for section in sections:
        node = node[section]
    assert node[name] == value
    run_config(config)


OPTIONS = {
    "generate": [
        "--max-new-tokens",
        "--top-k",
        "--seed",
        "--temperature",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
    ],
    "chat": ["--max-new-tokens", "--context", "--seed", "--temperature"],
    "evaluate": ["--sequence-length", "--num-fewshot", "--limit"],
    "inspect": ["--batch-size", "--context"],
    "interpolate": ["--tokens"],
    "quickstart": ["--steps"],
    "train": ["--num-processes", "--process-id"],
}
NEEDED = {
    **{command: ["--model", "nowhere"] for command in ("generate", "evaluate", "chat")},
    **{command: ["nowhere"] for command in ("inspect", "interpolate")},
    "train": ["--config", "nowhere.py", "--workdir", "nowhere"],
}


@pytest.mark.parametrize(("command", "option"), [(c, option) for c, options in OPTIONS.items() for option in options])
def test_options_that_are_numbers_refuse_what_is_none(command, option, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    more = ["--prompt", "a"] if command == "generate" else []
    for odd in ("x", "", "nan", "1e400", str(10**24), "9" * 5000, "(1,)"):
        if odd == str(10**24) and "-p" in option + option.replace("temperature", "-p"):
            continue  # a number
        assert main([command, *NEEDED.get(command, []), *more, f"{option}={odd}"]) == 2
        told = capsys.readouterr().err
        assert f"argument {option}: " in told and told.count("\n") == 1 and len(told) < 300
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_best_by_a_metric_that_it_measures():
    def told(**changes):
        values = tiny()
        for key, value in changes.items():
            values = with_value(values, key.split("__"), value)
        with pytest.raises(UserError) as error:
            check(run_config(values))
        return str(error.value)

    assert "choose one of validation_loss, " in told(checkpoint__best_metric="val_loss")
    assert "choose one of" in told(checkpoint__best_metric="zzz", checkpoint__keep_best=1)
    assert "set data.validation_fraction" in told(checkpoint__keep_best=1, data__validation_fraction=0.0)
    assert "set peft.base" in told(checkpoint__keep_best=1, checkpoint__best_metric="general_loss")
    early = {"checkpoint__keep_best": 2, "training__early_stopping": 2}
    assert "early_stopping" in told(**early, checkpoint__best_metric="validation_accuracy")
    check(run_config(with_value(with_value(tiny(), ["checkpoint", "keep_best"], 1), ["training", "early_stopping"], 1)))
