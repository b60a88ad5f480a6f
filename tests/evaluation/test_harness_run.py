"""Evaluations as a whole: the harness's own numbers, standard errors, files, resuming, and the command."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import lm_eval.evaluator
import lm_eval.utils
from lm_eval.api import metrics
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

import slmjax
from slmjax.cli.main import main
from slmjax.evaluation.harness import index, resume
from slmjax.evaluation.harness.host_cost import quiet
from slmjax.evaluation.harness.results import ResultFiles, table
from slmjax.evaluation.harness.run import evaluate_harness, load_tasks
from slmjax.evaluation.harness.standard_errors import standard_error
from tests.evaluation import miniatures
from tests.evaluation.hashed_model import HashedModel

SOME = ("arc_easy", "piqa", "lambada_openai", "wikitext", "mmlu_anatomy", "gsm8k")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return miniatures.write(tmp_path_factory.mktemp("data"), [*SOME, "hellaswag", "mmlu_astronomy"])


@pytest.fixture(scope="module")
def model_directory(talker, tmp_path_factory):
    return slmjax.save(talker, tmp_path_factory.mktemp("model") / "talker")


def as_upstream(name, data):
    """A task as the harness makes it, with its own loader reading our files."""
    config = load_yaml(index.read_index()[name].yaml_path)
    path, dataset = miniatures.TASKS[name]
    base = path.split("/")[-1] + (f".{dataset}" if dataset else "")
    files = {file.name.removeprefix(base).split(".")[1]: str(file) for file in data.glob(f"{base}.*.jsonl")}
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    config.pop("tag", None)
    return ConfigurableTask(config=config | local)


@pytest.mark.parametrize("shots", [0, 3])
def test_numbers_and_prompts_are_the_harnesss_own(data, tmp_path, monkeypatch, shots):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with quiet():
        theirs = lm_eval.evaluator.simple_evaluate(
            HashedModel(),
            tasks=[as_upstream(name, data) for name in SOME],
            num_fewshot=shots,
            bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        )
    ours = evaluate_harness(HashedModel(), SOME, data_dir=data, num_fewshot=shots)
    for name in SOME:
        values, wanted = ours["results"][name], theirs["results"][name]
        assert {k: v for k, v in values.items() if "_stderr" not in k} == {
            k: v for k, v in wanted.items() if "_stderr" not in k
        }
        assert values.keys() == wanted.keys()
    for section in ("versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[section] == theirs[section]
    for name in SOME:
        assert ours["samples"][name] == theirs["samples"][name]  # documents, prompts, answers, hashes


def test_a_task_that_fixes_no_shots_keeps_none(tmp_path):
    data = miniatures.write(tmp_path, ["truthfulqa_mc1"])
    assert evaluate_harness(HashedModel(), ["truthfulqa_mc1"], data_dir=data, num_fewshot=3)["n-shot"] == {
        "truthfulqa_mc1": 0
    }


def test_a_group_is_weighted_as_the_harness_does(data, tmp_path):
    yaml = "group: two\ntask: [mmlu_anatomy, piqa]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tmp_path / "two.yaml").write_text(yaml)
    results = evaluate_harness(HashedModel(), [str(tmp_path / "two.yaml"), "arc_easy"], data_dir=data)
    parts = [results["results"][name] for name in ("mmlu_anatomy", "piqa")]
    values, sizes = [p["acc,none"] for p in parts], [p["sample_len"] for p in parts]
    assert sizes == [5, 6]
    whole = results["groups"]["two"]
    assert whole == results["results"]["two"]
    assert whole["acc,none"] == pytest.approx(np.average(values, weights=sizes))
    errors = [p["acc_stderr,none"] for p in parts]
    assert whole["acc_stderr,none"] == pytest.approx(metrics.pooled_sample_stderr(errors, sizes))
    shown = table(results).splitlines()
    assert len({len(line) for line in shown}) == 1  # it lines up
    assert [line.split()[0] for line in shown if not line.startswith("    ")] == [
        "task", "two", "mmlu_anatomy", "piqa", "arc_easy"
    ]  # fmt: skip


def bootstrap(aggregation, items, count=500):
    rng = np.random.default_rng(0)
    return np.std([aggregation([items[i] for i in rng.integers(len(items), size=len(items))]) for _ in range(count)])


RNG = np.random.default_rng(1)
LABELS = [(int(g), int(g if RNG.random() < 0.7 else RNG.integers(2))) for g in RNG.integers(2, size=200)]
PAIRS = [(-float(RNG.gamma(n, 2)), int(n)) for n in RNG.integers(20, 60, size=300)]


@pytest.mark.parametrize(
    ("aggregation", "items"),
    [
        (metrics.mean, list(RNG.random(200))),
        (metrics.nanmean, [math.nan, *RNG.random(200)]),
        (metrics.perplexity, list(-RNG.gamma(3, 1, 300))),
        (metrics.weighted_perplexity, PAIRS),
        (metrics.bits_per_byte, PAIRS),
    ],
)
def test_standard_errors_in_closed_form_are_those_of_the_bootstrap(aggregation, items):
    assert standard_error(aggregation, items) == pytest.approx(bootstrap(aggregation, items), rel=0.15)


def f1(items):
    hits = sum(g == c == 1 for g, c in items)
    return 2 * hits / (sum(g for g, _ in items) + sum(c for _, c in items))


def test_the_jackknife_of_labels_is_the_bootstrap():
    pytest.importorskip("sklearn")
    assert standard_error(metrics.f1_score, LABELS) == pytest.approx(bootstrap(f1, LABELS), rel=0.15)
    assert 0 < standard_error(metrics.matthews_corrcoef, LABELS) < 0.1
    assert standard_error(metrics.bleu, [("a", "a")] * 3) == "N/A"
    assert standard_error(metrics.mean, [1.0]) == "N/A"


def test_templates_are_compiled_and_documents_processed_once(data, monkeypatch):
    evaluate_harness(HashedModel(), ["piqa"], data_dir=data, num_fewshot=2)
    compiled = lm_eval.utils.env.from_string.cache_info().misses
    evaluate_harness(HashedModel(), ["piqa"], data_dir=data, num_fewshot=2)
    assert lm_eval.utils.env.from_string.cache_info().misses == compiled
    selection = load_tasks(["hellaswag"], data_dir=data, num_fewshot=1)
    (task,) = selection.loaded[0].tasks.values()
    before = task.eval_docs, task.training_docs()
    evaluate_harness(HashedModel(), selection)
    assert task.eval_docs is before[0] and task.training_docs() is before[1]


def test_the_system_instruction_stands_apart_from_the_question(data):
    plain, chat, folded = HashedModel(), HashedModel(), HashedModel()
    evaluate_harness(plain, ["piqa"], data_dir=data, system_instruction="Be wise.")
    assert all(prompt.startswith("Be wise.\n\nQuestion:") for prompt in plain.prompts)
    options = {"data_dir": data, "system_instruction": "Be wise.", "apply_chat_template": True, "num_fewshot": 2}
    results = evaluate_harness(chat, ["piqa"], **options)
    assert all(p.startswith("<system>Be wise.<user>") and p.count("<user>") == 3 for p in chat.prompts)
    assert results["fewshot_as_multiturn"] is True and results["chat_template"] == "roles"
    evaluate_harness(folded, ["piqa"], **options, fewshot_as_multiturn=False)
    assert all(prompt.count("<user>") == 1 for prompt in folded.prompts)


def test_files_are_named_and_filled_as_the_harness_does(data, tmp_path):
    results = evaluate_harness(HashedModel(), ["arc_easy", "wikitext"], data_dir=data)
    files = ResultFiles(tmp_path / "out", "models/small:1")
    files.write(results)
    files.write_samples(results["samples"])
    directory = tmp_path / "out" / "models__small__1"
    (written,) = directory.glob("results_*.json")
    assert re.fullmatch(r"results_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d+\.json", written.name)
    read = json.loads(written.read_text())
    assert read["results"]["arc_easy"]["acc,none"] == results["results"]["arc_easy"]["acc,none"]
    assert read["results"]["wikitext"]["word_perplexity_stderr,none"] > 0
    assert read["versions"] == {"arc_easy": 1.0, "wikitext": 2.0} and "samples" not in read
    assert set(read) >= {
        "groups", "group_subtasks", "configs", "n-shot", "higher_is_better", "n-samples", "config", "date", "git_hash",
        "lm_eval_version", "task_hashes", "model_name", "model_name_sanitized", "total_evaluation_time_seconds",
    } - {"groups"}  # fmt: skip
    (samples,) = directory.glob("samples_arc_easy_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1, 2]
    assert lines[0]["arguments"]["gen_args_0"]["arg_0"].startswith("Question: ")
    assert isinstance(lines[0]["resps"][0][0][0], str) and isinstance(lines[0]["target"], str)
    assert lines[0]["doc_hash"] == lm_eval.utils.hash_string(json.dumps(lines[0]["doc"], indent=2, ensure_ascii=False))


class Stopping(HashedModel):
    """A model whose user presses Ctrl-C after so many answers."""

    left = 20

    def _told(self, method, request, answer):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super()._told(method, request, answer)


def test_a_stopped_run_goes_on_where_it_was(data, tmp_path):
    whole = HashedModel()
    wanted = evaluate_harness(whole, SOME, data_dir=data)
    answers, parts = tmp_path / "a.sqlite", []
    with pytest.raises(KeyboardInterrupt):
        evaluate_harness(
            Stopping(), SOME, data_dir=data, answers=answers, tell=lambda r: parts.append(len(r["results"]))
        )
    again = HashedModel()
    found = evaluate_harness(again, SOME, data_dir=data, answers=answers, resume=True)
    assert parts == [1]  # the first task was whole by then
    assert again.asked.total() == whole.asked.total() - 20
    assert found["config"]["answers_reused"] == 20
    assert found["results"] == wanted["results"] and found["task_hashes"] == wanted["task_hashes"]
    for name in SOME:
        assert found["samples"][name] == wanted["samples"][name]


def test_answers_are_kept_for_one_model_task_and_version(data, tmp_path, monkeypatch):
    answers = tmp_path / "a.sqlite"
    count = {}

    def asked(task="piqa", reuse=True, info=None, **options):
        model = HashedModel()
        if info is not None:
            model.get_model_info = lambda: {"model_fingerprint": info}
        evaluate_harness(model, [task], data_dir=data, answers=answers, resume=reuse, **options)
        return model.asked.total()

    count = asked()
    assert count == 12 and asked() == 0
    assert asked(reuse=False) == count  # only when it is asked for
    assert asked(info="another") == count and asked(info="another") == 0
    assert asked(num_fewshot=1) == count
    monkeypatch.setattr(
        resume.AnswerStore, "key", lambda self, *a, key=resume.AnswerStore.key: key(self, a[0], a[1], "9", a[3])
    )
    assert asked() == count


@pytest.mark.parametrize("damage", ["no database", "other values"])
def test_a_file_of_answers_is_not_believed(data, tmp_path, damage):
    answers = tmp_path / "a.sqlite"
    evaluate_harness(HashedModel(), ["piqa"], data_dir=data, answers=answers)
    if damage == "no database":
        answers.write_text("a" * 9000)
        with pytest.raises(slmjax.UserError, match="move it away"):
            evaluate_harness(HashedModel(), ["piqa"], data_dir=data, answers=answers, resume=True)
        return
    store = resume.AnswerStore(answers, {}, reuse=True)
    for value in ("{", "[1]", '"a"', "[NaN, 3]", '["a", true]'):
        store._run("UPDATE answers SET answer = ?", (value,))
        store.commit()
        model = HashedModel()
        evaluate_harness(model, ["piqa"], data_dir=data, answers=answers, resume=True)
        assert model.asked.total() == 12


KILLED = """
import os, signal, sys
from slmjax.evaluation.harness import resume, run
from tests.evaluation.hashed_model import HashedModel
resume._COMMIT_EVERY = 0

class Killed(HashedModel):
    def _told(self, *args):
        answer = super()._told(*args)
        if self.asked.total() == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

run.evaluate_harness(Killed(), ["piqa", "arc_easy"], data_dir=sys.argv[1], answers=run.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(data, tmp_path):
    answers = tmp_path / "a.sqlite"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(data), str(answers)], cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    model = HashedModel()
    found = evaluate_harness(model, ["piqa", "arc_easy"], data_dir=data, answers=answers, resume=True)
    assert found["config"]["answers_reused"] >= 14
    assert found["results"] == evaluate_harness(HashedModel(), ["piqa", "arc_easy"], data_dir=data)["results"]


def evaluated(capsys, *argv):
    status = main(["evaluate", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_evaluates_writes_and_goes_on(model_directory, data, tmp_path, capsys):
    argv = ("--model", model_directory, "--tasks", "arc_easy,lambada_openai", "--data-dir", data, "--limit", 2)
    out = tmp_path / "out.json"
    status, shown, _ = evaluated(capsys, *argv, "--output", out, "--samples")
    assert status == 0
    results = json.loads(out.read_text())
    assert results["n-samples"]["arc_easy"] == {"original": 3, "effective": 2}
    assert results["config"]["model_fingerprint"] and results["config"]["limit"] == 2
    assert f"{results['results']['arc_easy']['acc,none']:.4f}" in shown and "lambada_openai" in shown
    assert len(list(tmp_path.glob("samples_*.jsonl"))) == 2
    status, shown, _ = evaluated(capsys, *argv, "--output", out, "--resume", "--json")
    again = json.loads(shown)
    assert status == 0 and again["config"]["answers_reused"] == sum(
        1 for file in tmp_path.glob("samples_*.jsonl") for line in file.read_text().splitlines()
        for _ in json.loads(line)["resps"]
    )  # fmt: skip
    assert again["results"] == results["results"]


def test_the_command_refuses_in_one_sentence(model_directory, data, tmp_path, capsys):
    def refused(*argv, tasks="arc_easy", model=model_directory):
        status, out, err = evaluated(capsys, "--model", model, "--tasks", tasks, "--data-dir", data, *argv)
        assert status == 2 and out == ""
        (sentence,) = [line for line in err.splitlines() if line.startswith("slmjax: error:")]
        return sentence

    assert "'arc_easy'" in refused(tasks="arc_eazy")
    assert "fewer than 99" in refused("--num-fewshot", 99)
    assert "no chat template" in refused("--apply-chat-template")
    assert "needs --output" in refused("--resume") and "needs --output" in refused("--samples")
    assert "in both" in refused(tasks="mmlu_anatomy,mmlu_stem") or "needs its split" in refused(tasks="mmlu_stem")
    assert "give names" in refused(tasks=",")
    bare = slmjax.load(model_directory)
    bare = slmjax.save(
        slmjax.inference.language_model.LanguageModel(config=bare.config, params=bare.params), tmp_path / "b"
    )
    assert "has no tokenizer" in refused(model=bare)
