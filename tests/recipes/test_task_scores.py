"""Scores of tasks as a network learns: the numbers of `slmjax evaluate`, and not a bit of the training changed."""

import dataclasses
import json
import random

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.evaluation.harness.run import evaluate_harness
from slmjax.formats.models import load
from slmjax.peft.config import PeftConfig
from slmjax.recipes.check import check
from slmjax.recipes.config import run_config
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.observers.forgetting import compare
from slmjax.recipes.observers.plots import is_score, metric_of
from slmjax.recipes.observers.tasks import TaskScores, open_tasks
from slmjax.recipes.train import train
from slmjax.training.checkpoints.config import more_is_better
from slmjax.training.config import TasksConfig
from tests.tiny_run import lines_of, make_base


@pytest.fixture(scope="module")
def scored(small_run, task_files):
    """scored(names, **{"training.x": ...}): the config of a small run that is scored on tasks, and a general text."""

    def make(*names, **changes):
        tasks = {"names": names, "limit": 3, "data_dir": str(task_files)} | changes.pop("tasks", {})
        return small_run(**{"training.tasks": tasks} | changes)

    return make


def score_lines(workdir):
    lines = [line for line in lines_of(workdir) if line["split"] == "validation"]
    return {line["step"]: {name: line[name] for name in line if name.startswith("task/")} for line in lines}


@pytest.mark.slow
def test_a_run_is_scored_as_evaluate_scores_its_checkpoint_and_trains_the_same(
    scored, tmp_path, saved, assert_bitwise_equal, task_files, monkeypatch
):
    config, _ = scored("arc_easy", "lambada_openai", **{"training.eval_every": 2, "tasks": {"every": 2}})
    with monkeypatch.context() as patched:
        patched.setattr(TaskScores, "measure", leaving_generators(TaskScores.measure))
        train(config, tmp_path / "run")
    found = score_lines(tmp_path / "run")
    assert {step for step, scores in found.items() if scores} == {4, 6}  # every second evaluation, and the last
    assert set(found[6]) == {
        *(f"task/arc_easy/{metric}" for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")),
        *(f"task/lambada_openai/{metric}" for metric in ("acc", "acc_stderr", "perplexity", "perplexity_stderr")),
    }
    assert (tmp_path / "run" / "tasks.png").stat().st_size > 10_000

    results = evaluate_harness(
        load(tmp_path / "run"), ["arc_easy", "lambada_openai"], data_dir=task_files, limit=3, progress=False
    )["results"]
    for name, value in found[6].items():
        _, task, metric = name.split("/")
        assert value == pytest.approx(results[task][f"{metric},none"], rel=1e-4)

    plain = dataclasses.replace(config, training=dataclasses.replace(config.training, tasks=TasksConfig()))
    train(plain, tmp_path / "plain")
    states = [saved(config, tmp_path / name) for name in ("run", "plain")]
    assert_bitwise_equal(*(restored.state for restored in states))
    steps = [[x for x in lines_of(tmp_path / name) if x["split"] == "train"] for name in ("run", "plain")]
    assert steps[0] == steps[1]


def leaving_generators(measure):
    """`measure`, of which the global generators must not tell that it was called."""

    def watched(self, evaluation):
        before = random.getstate(), np.random.get_state()
        values = measure(self, evaluation)
        assert random.getstate() == before[0]
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
        return values

    return watched


@pytest.mark.slow
def test_the_forgetting_report_takes_tasks(scored, tmp_path):
    config, general = scored(**{"schedule.name": "constant", "training.eval_every": 3})
    config = dataclasses.replace(
        config,
        peft=PeftConfig(method="prefix", base="somewhere", prefix={"num_virtual_tokens": 2}),
        forgetting=ForgettingConfig(corpus=str(general), tokens=64, tasks=("lambada_openai",)),
    )
    result = train(config, tmp_path / "run", base=make_base(config))
    found = score_lines(tmp_path / "run")
    assert list(found) == [0, 3, 6] and all(found.values())
    report = json.loads((tmp_path / "run" / "forgetting.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    scores = ["task/lambada_openai/perplexity", "task/lambada_openai/acc"]
    assert sorted(rows) == sorted(["validation_loss", "general_loss", *scores])
    for name in scores:
        row = rows[name]
        assert (row["before"], row["after"]) == (found[0][name], found[6][name])
        assert row["gain"] == (row["change"] if name.endswith("acc") else -row["change"])
        assert name in result.reports["forgetting"].table()
    assert rows[scores[0]]["change"] != 0
    # Before is the base without the prefix that the method begins with.
    results = evaluate_base(config, tmp_path)
    assert found[0][scores[0]] == pytest.approx(results["perplexity,none"], rel=1e-4)
    assert (tmp_path / "run" / "forgetting.png").stat().st_size > 10_000


def evaluate_base(config, tmp_path):
    from slmjax.inference.language_model import LanguageModel
    from slmjax.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    lm = LanguageModel(config=config.model, params=make_base(config), tokenizer=tokenizer)
    data = config.training.tasks.data_dir
    return evaluate_harness(lm, ["lambada_openai"], data_dir=data, limit=3, progress=False)["results"]["lambada_openai"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"names": ("arc_easi",)}, "There is no task 'arc_easi'.*arc_easy"),
        ({"names": ("arc_easy",), "data_dir": "/nowhere"}, r"training\.tasks\.data_dir.*/nowhere"),
        ({"names": ("mmlu_pro",)}, "mmlu_pro.*lacks"),
        ({"names": ("arc_easy",), "num_fewshot": 1000}, r"lower training\.tasks\.num_fewshot"),
        ({"names": ("humaneval",)}, r"training\.tasks\.allow_code=True"),
        ({"names": ("pubmedqa",)}, "ori_pqal.json cannot be read"),
    ],
)
def test_tasks_that_cannot_be_are_refused_before_anything_is_written(scored, tmp_path, tasks, message):
    config, _ = scored(tasks=tasks)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists() and not (tmp_path / "run" / "config.json").exists()


def test_settings_that_cannot_be_are_refused(scored, monkeypatch):
    for wrong, message in (
        ({"every": 0}, r"training\.tasks\.every=0 must be at least 1"),
        ({"limit": -1}, r"training\.tasks\.limit=-1"),
        ({"num_fewshot": -2}, r"training\.tasks\.num_fewshot=-2"),
        ({"names": (1,)}, r"training\.tasks\.names"),
    ):
        with pytest.raises(UserError, match=message):
            scored(tasks=wrong)
    config, _ = scored()
    stored = config.to_dict()
    assert run_config(json.loads(json.dumps(stored))) == config
    stored["training"]["tasks"]["nams"] = []
    with pytest.raises(UserError, match=r"unknown key training\.tasks\.nams.*names"):
        run_config(stored)
    with pytest.raises(UserError, match=r"use training\.tasks\.names"):
        check(dataclasses.replace(config, forgetting=ForgettingConfig(tasks=("arc_easy",))))
    config, _ = scored("arc_easy")
    monkeypatch.setattr("slmjax.evaluation.harness.has_harness", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'slmjax\[eval\]'"):
        open_tasks(config)


def test_a_wrong_task_ends_the_command_with_status_2(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        "from slmjax.models.config import ModelConfig\nfrom slmjax.recipes.config import default_config, set_budget\n"
        "def get_config():\n    sizes = dict(num_layers=1, embed_dim=16, num_heads=2, ffn_dim=16)\n"
        "    config = default_config(ModelConfig(vocab_size=300, **sizes))\n    set_budget(config, steps=1)\n"
        "    config.data.sources.text = {'path': 'python:stdlib?max_megabytes=1'}\n    return config\n"
    )
    command = ["train", "--config", str(path), "--workdir", str(tmp_path / "run")]
    assert main([*command, "--config.training.tasks.names=('hellaswagg',)"]) == 2
    assert "hellaswag" in capsys.readouterr().err


def test_less_is_better_of_perplexities_alone():
    assert more_is_better("task/piqa/acc") and more_is_better("validation_accuracy")
    assert not more_is_better("task/lambada_openai/perplexity") and not more_is_better("task/wikitext/bits_per_byte")
    assert not more_is_better("validation_loss")
    assert is_score("task/gsm8k/exact_match,strict-match") and not is_score(
        "task/gsm8k/exact_match_stderr,strict-match"
    )
    assert metric_of("task/gsm8k/exact_match,strict-match") == "exact_match"


def test_a_report_tells_gains_in_the_direction_that_is_good(scored):
    config, _ = scored()
    before = {"validation_loss": 3.0, "task/a/acc": 0.5, "task/a/acc_stderr": 0.1, "task/a/perplexity": 20.0}
    after = {"validation_loss": 2.0, "task/a/acc": 0.25, "task/a/acc_stderr": 0.2, "task/a/perplexity": 10.0}
    report = compare(config, 5, before, after, {"perplexity"})
    assert {row["name"]: row["gain"] for row in report.rows} == {
        "validation_loss": 1.0,
        "task/a/acc": -0.25,
        "task/a/perplexity": 10.0,
    }
