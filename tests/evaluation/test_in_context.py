"""Accuracy over shots: each number of shots in a call of its own, a table and a figure."""

import json

import pytest

pytest.importorskip("lm_eval")

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.evaluation.harness.run import evaluate_harness
from slmjax.evaluation.in_context import Line, accuracy_lines, evaluate_shots, load_shots, shots_table
from tests.evaluation import miniatures
from tests.evaluation.hashed_model import HashedModel

SOME = ("arc_easy", "gsm8k", "lambada_openai", "wikitext")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    names = [*SOME, "mmlu_anatomy", "mmlu_astronomy", "truthfulqa_mc1"]
    return miniatures.write(tmp_path_factory.mktemp("data"), names)


def test_each_number_of_shots_has_the_results_of_its_own_call(data):
    """In one call the harness keeps the last under a task's name."""
    results = evaluate_shots(HashedModel(), load_shots(SOME, [2, 0, 1], data_dir=data), progress=False)
    assert list(results) == [0, 1, 2]
    for n, found in results.items():
        alone = evaluate_harness(HashedModel(), SOME, data_dir=data, num_fewshot=n, progress=False)
        assert found["results"] == alone["results"]
        assert set(found["n-shot"].values()) == {n}
    lines = {line.task: line for line in accuracy_lines(results)}
    assert {name: (line.metric, line.filter) for name, line in lines.items()} == {
        "arc_easy": ("acc_norm", "none"),
        "gsm8k": ("exact_match", "flexible-extract"),
        "lambada_openai": ("acc", "none"),  # and none for wikitext, which has no accuracy
    }
    for n in (0, 1, 2):
        scores = results[n]["results"]["arc_easy"]
        assert lines["arc_easy"].values[n] == scores["acc_norm,none"]
        assert lines["arc_easy"].stderrs[n] == scores["acc_norm_stderr,none"]


def test_more_shots_than_examples_are_refused_before_anything_is_scored(data):
    with pytest.raises(
        UserError, match="has 6 examples to choose its shots from, fewer than 400: lower --num-fewshot or --shots"
    ):
        load_shots(["lambada_openai", "arc_easy"], [0, 400], data_dir=data)


def test_tasks_that_fix_their_shots_are_left_out_and_told(data, capsys):
    selections = load_shots(["truthfulqa_mc1", "arc_easy"], [0, 1], data_dir=data)
    assert [[each.name for each in one.loaded] for one in selections.values()] == [["arc_easy"]] * 2
    assert "left out, as they always have the same shots: truthfulqa_mc1" in capsys.readouterr().err
    with pytest.raises(UserError, match="truthfulqa_mc1 always have the same shots"):
        load_shots(["truthfulqa_mc1"], [0, 1], data_dir=data)


def test_a_group_has_one_line():
    scores = {
        "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.1},
        **{name: {"acc,none": value} for name, value in (("law", 0.4), ("art", 0.6), ("piqa", 0.7))},
        "tagged": {},
    }
    members = {"mmlu": ["arts"], "arts": ["law", "art"], "tagged": ["piqa"]}
    results = {n: {"results": scores, "group_subtasks": members} for n in (0, 5)}
    assert [line.task for line in accuracy_lines(results)] == ["mmlu", "piqa"]


def test_the_table_shows_the_change_and_the_mean():
    lines = [
        Line("piqa", "acc", "none", {0: 0.5, 1: 0.55, 5: 0.625}, {0: 0.1, 1: None, 5: 0.1}),
        Line("gsm8k", "exact_match", "flexible-extract", {0: 0.25, 1: 0.25, 5: 0.125}, {}),
    ]
    assert shots_table(lines).splitlines() == [
        "task   metric                          0 shots  1 shot  5 shots   change",
        "piqa   acc                              0.5000  0.5500   0.6250  +0.1250",
        "gsm8k  exact_match (flexible-extract)   0.2500  0.2500   0.1250  -0.1250",
        "mean                                    0.3750  0.4000   0.3750  +0.0000",
    ]


@pytest.mark.slow
def test_the_command_writes_results_a_table_and_a_figure(talker, data, tmp_path, capsys):
    path = slmjax.save(talker, tmp_path / "model")
    command = ["evaluate", "--model", str(path), "--tasks", "arc_easy", "--data-dir", str(data), "--limit", "2"]
    assert main([*command, "--shots", "0,1", "--output", str(tmp_path / "out"), "--samples"]) == 0
    assert "0 shots" in capsys.readouterr().out
    assert (tmp_path / "out" / "in_context.png").read_bytes().startswith(b"\x89PNG")
    (line,) = json.loads((tmp_path / "out" / "in_context.json").read_text())
    for n in (0, 1):
        (results,) = (tmp_path / "out" / f"{n}_shot").rglob("results_*.json")
        assert json.loads(results.read_text())["results"]["arc_easy"]["acc_norm,none"] == line["values"][str(n)]
        assert len(list(results.parent.glob("samples_arc_easy_*.jsonl"))) == 1
    assert main([*command, "--shots", "0,1", "--num-fewshot", "3"]) == 2
    assert "either --num-fewshot N or --shots" in capsys.readouterr().err


@pytest.mark.parametrize("shots", ["", "0,x", "-1", "1,,2"])
def test_shots_that_are_no_numbers_are_refused(shots, capsys):
    assert main(["evaluate", "--model", "m", "--tasks", "piqa", f"--shots={shots}"]) == 2
    assert "must be a whole number" in capsys.readouterr().err
