"""Configs: what goes in comes out again, and each mistake is refused with its place and the way out."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.cli.shared.config_files import apply_override, load_config
from slmjax.errors import UserError
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.models.counting import count_parameters
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.identity import differing_keys, record
from slmjax.training.config import BUDGETS, TrainingConfig
from slmjax.training.run_directory import claim

PLAIN = ModelConfig(vocab_size=300, num_layers=2, embed_dim=32, num_heads=4, ffn_dim=64)
# Tuples, a nested dataclass with tuples in it, and values that are None elsewhere.
RICH = dataclasses.replace(
    PLAIN,
    num_heads=(4, 2),
    num_kv_heads=(2, 1),
    ffn_dim=(64, 32),
    head_dim=8,
    layer_pattern=("local", "global"),
    window=16,
    logit_softcap=30.0,
    rope_scaling=RopeScaling("longrope", 4.0, 64, short_factor=(1.0, 1.5, 2.0, 2.5), long_factor=(2.0, 3.0, 4.0, 5.0)),
)


def make(model=PLAIN):
    config = default_config(model)
    config.data.sources.one = {"path": "one.txt"}
    config.data.sources["two-3"] = {"path": "two/*.jsonl", "weight": 0.5, "text_field": "body"}
    config.data.tokenizer = "train:300"
    return config


def refused(config, *parts):
    with pytest.raises(UserError) as error:
        run_config(config)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("model", [PLAIN, RICH])
def test_a_config_survives_its_dictionary_and_json(model):
    config = run_config(make(model))
    assert config.model == model
    assert run_config(config.to_dict()) == config
    assert run_config(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_read_back_from_its_workdir_is_the_same_run(tmp_path):
    config = run_config(make(RICH))
    claim(tmp_path / "run", record(config))
    claim(tmp_path / "run", record(config))  # tuples have become lists
    claim(tmp_path / "run", record(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, tensor=2))))
    other = dataclasses.replace(RICH, rope_scaling=dataclasses.replace(RICH.rope_scaling, factor=8.0))
    with pytest.raises(UserError, match=r"model\.rope_scaling\.factor \(4\.0 -> 8\.0\)"):
        claim(tmp_path / "run", record(run_config(make(other))))
    (tmp_path / "run" / "config.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"config\.json is not readable"):
        claim(tmp_path / "run", record(config))


def test_a_run_without_an_end_in_its_schedule_may_be_given_a_longer_budget():
    for name, free in (("constant", True), ("inverse_sqrt", True), ("cosine", False), ("wsd", False)):
        short, long = make(), make()
        for config, steps in ((short, 10), (long, 20)):
            set_budget(config, steps=steps)
            config.schedule.name = name
        assert (differing_keys(run_config(short), run_config(long)) == []) == free, name


CHANGES = {
    "model.rope_theta": 5.0,
    "model.layer_pattern": ("local",),
    "data.sources.one.path": "another.txt",
    "data.sources.two-3.weight": 0.25,
    "data.seed": 9,
    "training.seed": 9,
    "optimizer.b2": 0.5,
    "schedule.peak": 0.5,
    "peft.lora.r": 3,
    "forgetting.kl": 0.5,
}
FREE = {"mesh.tensor": 2, "checkpoint.every": 7, "data.cache_dir": "there", "training.log_every": 3}


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(sorted(CHANGES))), st.sets(st.sampled_from(sorted(FREE))))
def test_what_makes_it_another_run_is_named_key_by_key(changed, free):
    config = make(dataclasses.replace(PLAIN, window=16))
    old = run_config(config)
    for key in changed | free:
        *path, name = key.split(".")
        place = config
        for section in path:
            place = place[section]
        place[name] = (CHANGES | FREE)[key]
    assert [line.partition(" (")[0] for line in differing_keys(old, run_config(config))] == sorted(changed)


def test_unknown_names_are_refused_with_the_nearest_known_one():
    values = run_config(make()).to_dict()
    refused({**values, "optimiser": {}}, "section 'optimiser'", "did you mean 'optimizer'?")
    training = {**values["training"], "batchsize": 8}
    refused({**values, "training": training}, "training.batchsize", "did you mean 'batch_size'?")
    refused({**values, "zzz": {}}, "'zzz'", "model, data, training")


def test_a_section_that_is_incomplete_or_wrong_is_named():
    values = run_config(make()).to_dict()
    del values["model"]["vocab_size"]
    refused(values, "'model'", "vocab_size")
    refused({}, "'model'")
    values = run_config(make()).to_dict()
    refused({**values, "training": {**values["training"], "batch_size": "many"}}, "training.batch_size='many'")
    refused({**values, "model": 7}, "'model'")


@given(st.sets(st.sampled_from(BUDGETS)))
def test_the_budget_is_given_exactly_once(given_budgets):
    changes = {name: 2.5 if name in ("tokens_per_param", "epochs") else 7 for name in given_budgets}
    if len(given_budgets) == 1:
        TrainingConfig(**changes)
        return
    said = rf"is set {len(given_budgets)} times" if given_budgets else "No budget is set"
    with pytest.raises(UserError, match=said) as error:
        TrainingConfig(**changes)
    assert all(f"training.{name}" in str(error.value) for name in given_budgets or BUDGETS)


def test_every_budget_becomes_the_steps_that_spend_it():
    config = make()
    per_step = config.training.batch_size * config.data.sequence_length
    for budget, steps in (
        ({"steps": 12}, 12),
        ({"tokens": 3 * per_step}, 3),
        ({"tokens": 3 * per_step + 1}, 4),
        ({"tokens": 1}, 1),
        ({"tokens_per_param": 20.0}, -(-20 * count_parameters(PLAIN).total // per_step)),
    ):
        set_budget(config, **budget)
        assert run_config(config).total_steps == steps, budget
    set_budget(config, epochs=1.5)
    with pytest.raises(UserError, match=r"training\.epochs=1\.5 are known once the data are prepared"):
        _ = run_config(config).total_steps
    rows = 2 * config.training.batch_size + 1
    assert dataclasses.replace(run_config(config), rows_per_epoch=rows).total_steps == 4


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 6, "accumulation": 4}, "not a multiple of training.accumulation=4"),
        ({"dtype": "float16"}, "float16"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"steps": -3}, "steps=-3"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"spike_factor": float("nan")}, "spike_factor=nan"),
        ({"eval_every": -1}, "eval_every=-1"),
    ],
)
def test_values_without_a_meaning_are_refused(changes, part):
    with pytest.raises(UserError, match=part):
        TrainingConfig(**{"steps": 1} | changes)


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("training.batch_size=64", "training", "batch_size", 64),
        ("training.tokens=2e9", "training", "tokens", 2_000_000_000),
        ("schedule.peak=1", "schedule", "peak", 1.0),
        ("data.add_bos=true", "data", "add_bos", True),
        ("data.cache_dir=12", "data", "cache_dir", "12"),
        ("model.layer_pattern=('global','global')", "model", "layer_pattern", ("global", "global")),
        ("model.logit_softcap=30.0", "model", "logit_softcap", 30.0),
        ("model.window=none", "model", "window", None),
        ("model.ffn_dim=(64,32)", "model", "ffn_dim", (64, 32)),
    ],
)
def test_an_override_takes_the_type_of_what_is_there(override, section, name, value):
    config = make()
    apply_override(config, f"--config.{override}")
    got = getattr(getattr(run_config(config), section), name)
    assert got == value and type(got) is type(value)


def test_a_new_budget_replaces_the_old_one():
    config = make()
    for override, name in (
        ("steps=5", "steps"),
        ("tokens=70000", "tokens"),
        ("tokens_per_param=3", "tokens_per_param"),
        ("epochs=2", "epochs"),
    ):
        apply_override(config, f"--config.training.{override}")
        training = run_config(config).training
        assert [budget for budget in BUDGETS if getattr(training, budget)] == [name]


def test_sources_are_added_and_changed_by_name():
    config = make()
    apply_override(config, "--config.data.sources.three.path=three.txt")
    apply_override(config, "--config.data.sources.two-3.weight=4")
    sources = run_config(config).data.sources
    assert sources["three"].path == "three.txt" and sources["two-3"].weight == 4.0 and sources["one"].weight == 1.0


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.batchsize=8", ["training", "'batchsize'", "did you mean 'batch_size'?"]),
        ("trainin.batch_size=8", ["'trainin'", "did you mean 'training'?"]),
        ("training.batch_size", ["no value", "--config.training.batch_size=VALUE"]),
        ("training.batch_size=many", ["training.batch_size=many", "a whole number", "=32"]),
        ("training.batch_size=8.5", ["a whole number"]),
        ("training.batch_size=True", ["a whole number"]),
        ("schedule.peak=high", ["a number", "=0.003"]),
        ("data.add_bos=3", ["True or False"]),
        ("training=3", ["is a section", "batch_size"]),
        ("training.batch_size.x=3", ["training.batch_size.x", "has no keys"]),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(override, parts):
    config = make()
    before = config.to_dict()
    with pytest.raises(UserError) as error:
        apply_override(config, f"--config.{override}")
    for part in parts:
        assert part in str(error.value)
    assert config.to_dict() == before


def test_a_config_file_that_fails_is_named(tmp_path):
    file = tmp_path / "mine.py"
    for text, part in (
        ("x = 1", "no function get_config"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=part) as error:
            load_config(str(file), [])
        assert str(file) in str(error.value)
    with pytest.raises(UserError, match="no config file"):
        load_config(str(tmp_path / "none.py"), [])
