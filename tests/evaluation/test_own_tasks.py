"""Tasks of our own within the harness: the same questions, predictions and numbers as without it, beside others."""

import json
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.evaluation.harness.own_tasks import OwnTask
from slmjax.evaluation.harness.run import evaluate_harness, load_tasks
from slmjax.evaluation.tasks.registry import TASKS, evaluate_tasks
from tests.evaluation import miniatures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data of two tasks of our own, each in its directory, beside files of the harness's."""
    place = tmp_path_factory.mktemp("tasks")
    (place / "text2sql").mkdir()
    connection = sqlite3.connect(place / "text2sql" / "states.sqlite")
    connection.executescript("CREATE TABLE s (name TEXT); INSERT INTO s VALUES ('ohio'), ('utah'), ('iowa')")
    connection.close()
    entry = {
        "sql": ['SELECT Salias0.NAME FROM S AS Salias0 WHERE Salias0.NAME = "state0" ;', "SELECT 1 ;"],
        "sentences": [
            {"text": "where is state0", "variables": {"state0": name}, "question-split": split}
            for name, split in (("ohio", "train"), ("utah", "train"), ("iowa", "test"), ("utah", "test"))
        ],
    }
    (place / "text2sql" / "states.json").write_text(json.dumps([entry]))
    (place / "pubmedqa").mkdir()
    questions = {
        str(n): {"QUESTION": f"is it {n}?", "CONTEXTS": ["one", "two " * n], "final_decision": answer}
        for n, answer in enumerate(("yes", "no", "maybe", "no", "yes", "no"))
    }
    (place / "pubmedqa" / "ori_pqal.json").write_text(json.dumps(questions))
    (place / "pubmedqa" / "test_ground_truth.json").write_text(json.dumps(dict.fromkeys("12345", "")))
    miniatures.write(place)
    return place


@pytest.mark.parametrize(("name", "shots"), [("text2sql", 0), ("text2sql", 1), ("pubmedqa", 0)])
def test_the_harness_gives_the_numbers_and_predictions_of_the_task_alone(talker, data, name, shots):
    alone = evaluate_tasks(talker, [name], data / name, num_fewshot=shots, progress=False)[name]
    results = evaluate_harness(talker, [name], data_dir=data, num_fewshot=shots, progress=False)
    told = results[name]
    ours, theirs = ([p.pop("log_likelihoods", 0.0) for p in side["predictions"]] for side in (told, alone))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert told == alone
    scores = results["results"][name]
    for metric in TASKS[name].metrics:
        assert scores[f"{metric},none"] == pytest.approx(alone[metric])
        assert results["higher_is_better"][name][metric] is (metric != "gold_failures")
    assert results["n-shot"][name] == shots
    assert scores["sample_len"] == len(alone["predictions"])
    # In the data's directory itself too, where it holds nothing else.
    assert evaluate_harness(talker, [name], data_dir=data / name, limit=1, progress=False)[name]["questions"] == 1


def test_all_tasks_are_evaluated_in_one_call(talker, data, tmp_path, capsys):
    slmjax.save(talker, tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data-dir", str(data), "--limit", "2", "--json"]
    output = tmp_path / "results.json"
    assert main([*command, "--tasks", "text2sql,pubmedqa,arc_easy", "--output", str(output)]) == 0
    shown, saved = json.loads(capsys.readouterr().out), json.loads(output.read_text())
    assert list(saved["results"]) == ["text2sql", "pubmedqa", "arc_easy"]
    assert shown["results"] == saved["results"]
    assert len(saved["pubmedqa"]["predictions"]) == 2 == shown["pubmedqa"]["questions"]
    assert "predictions" not in shown["text2sql"]


def test_without_the_harness_our_own_tasks_are_evaluated_alone(talker, data, tmp_path, capsys, monkeypatch):
    slmjax.save(talker, tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--tasks", "text2sql", "--limit", "1", "--json"]
    shown = []
    for installed in (True, False):
        monkeypatch.setattr("slmjax.evaluation.harness.has_harness", lambda installed=installed: installed)
        assert main([*command, "--data-dir", str(data / "text2sql")]) == 0
        shown.append(json.loads(capsys.readouterr().out)["text2sql"])
    assert shown[0] == shown[1]
    assert main([*command, "--data-dir", str(data), "--tasks", "text2sql,arc_easy"]) == 2
    assert "pip install 'slmjax[eval]'" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="text2sql reads local data: give their directory by --data-dir"):
        load_tasks(["text2sql"])
    with pytest.raises(UserError, match="pubmedqa takes no examples"):
        load_tasks(["pubmedqa"], data_dir=data, num_fewshot=1)
    with pytest.raises(UserError, match="has 2 questions, fewer than num_fewshot=3"):
        load_tasks(["text2sql"], data_dir=data, num_fewshot=3)
    with pytest.raises(UserError, match=r"must hold one \.json file"):
        load_tasks(["text2sql"], data_dir=tmp_path)
    (task,) = load_tasks(["pubmedqa"], data_dir=data).loaded[0].tasks.values()
    assert isinstance(task, OwnTask)


def test_programs_are_run_only_where_it_is_allowed(talker, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.humaneval")]:
        monkeypatch.delitem(sys.modules, name)
    slmjax.save(talker, tmp_path / "model")
    official = Path(lm_eval.__file__).parent / "tasks" / "humaneval" / "humaneval.yaml"
    (tmp_path / "short.yaml").write_text(
        f"include: {official}\ntask: short\ngeneration_kwargs:\n  until: ['\\n']\n  max_gen_toks: 8\n"
    )
    item = {
        "prompt": "def one():\n    return 1 # ",
        "test": "def check(f):\n    assert f() == 1\n",
        "entry_point": "one",
    }
    wrong = {"test": "def check(f):\n    assert f() == 2\n"}
    records = [item, item | wrong, item, item]
    (tmp_path / "short.test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ["evaluate", "--model", str(tmp_path / "model"), "--tasks", str(tmp_path / "short.yaml")]
    command += ["--data-dir", str(tmp_path)]
    for _ in range(2):  # also once the harness has loaded the task's functions
        assert main(command) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "--allow-code" in said
        assert main([*command, "--allow-code", "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)["results"]["short"]
        assert scores["pass@1,create_test"] == 0.75  # whatever random weights put into the comment
