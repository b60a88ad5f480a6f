"""The harness's tasks: found by name without parsing its files, and read from local data."""

import gzip
import json
import logging

import pytest

pytest.importorskip("lm_eval")

import datasets
from lm_eval.tasks._index import TaskIndex

from slmjax.errors import UserError
from slmjax.evaluation.harness import index
from slmjax.evaluation.harness.presets import preset_names, read_preset
from slmjax.evaluation.harness.run import evaluate_harness, load_tasks
from tests.evaluation import miniatures
from tests.evaluation.hashed_model import HashedModel

ARC = miniatures.DATASETS["allenai/ai2_arc", "ARC-Easy"]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def only_task(selection):
    (loaded,) = selection.loaded
    (task,) = loaded.tasks.values()
    return task


def documents(directory, task, **options):
    return list(only_task(load_tasks([task], data_dir=directory, **options)).eval_docs)


def refused(*names, **options):
    with pytest.raises(UserError) as error:
        evaluate_harness(HashedModel(), list(names), **options)
    return str(error.value)


def same_entries(ours, theirs):
    assert list(ours) == list(theirs)
    for name, entry in ours.items():
        assert (entry.kind, entry.yaml_path, entry.tags) == (
            theirs[name].kind, theirs[name].yaml_path, theirs[name].tags
        )  # fmt: skip


@pytest.fixture(autouse=True)
def silence():
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


# Groups, tags in lists, quoted keys, Python tasks, includes of includes, and a tag that an included file gives.
@pytest.mark.parametrize("folder", ["arc", "mmlu/default", "bbh/cot_fewshot", "scrolls", "benchmarks", "lambada"])
def test_the_scan_finds_what_the_harness_finds(folder):
    same_entries(index.scan(index.ROOT / folder), TaskIndex.build([index.ROOT / folder]))


@pytest.mark.slow
def test_the_scan_of_all_tasks_finds_what_the_harness_finds():
    same_entries(index.scan(index.ROOT), TaskIndex.build([index.ROOT]))


def test_the_index_is_kept_and_kept_right(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(index, "ROOT", index.ROOT / "arc")
    first = index._builtin.__wrapped__()
    (file,) = (tmp_path / "slmjax").glob("lm-eval-tasks-*.json")
    same_entries(index._builtin.__wrapped__(), first)
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"entries": {}}))
    assert not index._builtin.__wrapped__()  # it is the file that is read
    for damage in ("{", json.dumps(kept | {"identity": []}), json.dumps(kept | {"entries": {"a": 1}})):
        file.write_text(damage)
        same_entries(index._builtin.__wrapped__(), first)


def test_every_preset_names_tasks_that_are_there():
    assert preset_names() == ["in_training", "openllm", "survey"]
    known = index.read_index()
    for name in preset_names():
        assert all(one.name in known for one in read_preset(name).tasks)
    assert len(read_preset("survey").tasks) == 12


def test_an_unknown_task_is_told_the_nearest_names(tmp_path):
    assert "'hellaswag'" in refused("helaswag")
    assert "no task file" in refused("none.yaml")
    assert "is not a directory" in refused("arc_easy", data_dir=tmp_path / "none")
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "not a readable task" in refused(str(tmp_path / "bad.yaml"))
    assert "holds no task" in refused("arc_easy", include_path=[str(tmp_path)])


@pytest.mark.parametrize("named_by", ["task", "dataset"])
@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "csv"])
def test_every_form_of_a_file_gives_the_same_documents(tmp_path, form, named_by):
    task = "piqa" if form == "csv" else "arc_easy"
    data = miniatures.write(tmp_path, [task], form=form, named_by=named_by)
    assert (
        documents(data, task) == miniatures.DATASETS[miniatures.TASKS[task]]["validation" if form == "csv" else "test"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "arc_easy/test.json",
        "ARC-Easy/test-00000-of-00001.jsonl",
        "ai2_arc/ARC-Easy/data/test.jsonl",
        "allenai__ai2_arc__ARC-Easy.test.jsonl.gz",
        "ai2_arc.test.jsonl",
        "arc_easy_testing.jsonl",
    ],
)
def test_files_are_found_by_the_names_that_people_give_them(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = lines(ARC["test"])
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert documents(tmp_path, "arc_easy") == ARC["test"]


def test_a_directory_may_be_one_data_set(tmp_path):
    (tmp_path / "gsm8k" / "main").mkdir(parents=True)
    records = miniatures.DATASETS["openai/gsm8k", "main"]["test"]
    (tmp_path / "gsm8k" / "main" / "test.jsonl").write_text(lines(records))
    assert (
        documents(tmp_path / "gsm8k", "gsm8k", num_fewshot=0) == documents(tmp_path, "gsm8k", num_fewshot=0) == records
    )


def test_shards_are_read_in_order_and_all_of_them(tmp_path):
    (tmp_path / "ARC-Easy").mkdir()
    for number in range(3):
        (tmp_path / "ARC-Easy" / f"test-0000{number}-of-00003.jsonl").write_text(
            lines(ARC["test"][number : number + 1])
        )
    assert documents(tmp_path, "arc_easy") == ARC["test"]
    (tmp_path / "ARC-Easy" / "test-00001-of-00003.jsonl").unlink()
    assert "has 2 of the 3 files test-*" in refused("arc_easy", data_dir=tmp_path)


def test_a_file_named_after_the_data_set_alone_serves_one_configuration(tmp_path):
    (tmp_path / "ai2_arc.test.jsonl").write_text(lines(ARC["test"]))
    assert "rename it" in refused("arc_easy", "arc_challenge", data_dir=tmp_path)


def test_other_known_forms_are_turned_into_the_tasks(tmp_path):
    (tmp_path / "lambada_openai.test.jsonl").write_text(lines([{"context": "To the old", "continuation": "mill"}]))
    (tmp_path / "boolq.validation.jsonl").write_text(
        lines([{"question": "is it", "passage": "It is.", "answer": True}])
    )
    assert documents(tmp_path, "lambada_openai") == [{"text": "To the old mill"}]
    assert documents(tmp_path, "boolq")[0]["label"] == 1
    model = HashedModel()
    evaluate_harness(model, ["lambada_openai"], data_dir=tmp_path)
    assert model.prompts == ["To the old"]


def test_without_shots_their_pool_is_not_needed(tmp_path):
    (tmp_path / "hellaswag.val.jsonl").write_text(lines(miniatures.DATASETS["Rowan/hellaswag", None]["validation"]))
    assert len(documents(tmp_path, "hellaswag")) == 6
    selection = load_tasks(["hellaswag"], data_dir=tmp_path, num_fewshot=2)
    assert "shots are drawn from the evaluated split" in selection.loaded[0].notes[0]


@pytest.mark.parametrize(("task", "split"), [("arc_easy", "validation"), ("arc_easy", "test"), ("piqa", "validation")])
def test_no_item_is_its_own_shot(tmp_path, task, split):
    """With the evaluated file alone, shots come from it; all other questions turn up, an item's own once."""
    parts = miniatures.DATASETS[miniatures.TASKS[task]]
    records = [record for part in parts.values() for record in part]
    (tmp_path / f"{task}.{split}.jsonl").write_text(lines(records))
    model = HashedModel()
    results = evaluate_harness(model, [task], data_dir=tmp_path, num_fewshot=len(records) - 1)
    assert results["config"]["notes"]
    samples = results["samples"][task]
    assert len(samples) == len(records)
    field = "question" if task == "arc_easy" else "goal"
    for sample in samples:
        prompt = sample["arguments"][0][0]
        assert all(prompt.count(f"Question: {record[field]}\n") == 1 for record in records)
        assert prompt.endswith(f"Question: {sample['doc'][field]}\nAnswer:")
    assert "fewer than 16" in refused(task, data_dir=tmp_path, num_fewshot=len(records))


def test_validation_stands_in_for_a_test_split_that_is_not_there(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"arc_easy.{split}.jsonl").write_text(lines(ARC[split]))
    selection = load_tasks(["arc_easy"], data_dir=tmp_path, num_fewshot=2)
    task = only_task(selection)
    assert list(task.eval_docs) == ARC["validation"] and list(task.fewshot_docs()) == ARC["train"]
    assert "validation split is evaluated" in selection.loaded[0].notes[0]


def test_what_is_wrong_with_data_is_said(tmp_path):
    told = refused("arc_easy", data_dir=tmp_path)
    for part in ("arc_easy.test.jsonl", ".parquet", "allenai/ai2_arc", "ARC-Easy", "hf download"):
        assert part in told
    path = tmp_path / "arc_easy.test.jsonl"
    for text, part in {
        "": "has no records",
        lines([{"question": "?"}]): "reads the field 'choices'",
        lines([ARC["test"][0], {"question": "?"}]): "line 2 has no field",
        "[1]\n": "not an object",
        '{"question": ': "line 1 is not a JSON record",
        lines([{"a": 1}, {"a": "x"}]): "one type",
        lines([{"a": 10**30}]): "one type",
    }.items():
        path.write_text(text)
        assert part in refused("arc_easy", data_dir=tmp_path), text
    path.unlink()
    (tmp_path / "arc_easy.test.parquet").write_bytes(b"PAR1 this is none PAR1")
    assert "not a readable Parquet file" in refused("arc_easy", data_dir=tmp_path)


def test_a_field_that_a_later_item_lacks_is_named_as_well(tmp_path):
    records = [dict(record) for record in ARC["test"]]
    records[-1]["choices"] = {"text": ["a", "b", "c"], "label": None}
    (tmp_path / "arc_easy.test.jsonl").write_text(lines(records))
    assert "arc_easy" in refused("arc_easy", data_dir=tmp_path)


def test_a_user_can_bring_tasks(tmp_path):
    """In a directory, hiding the harness's of the same name, or as a file; local data serve them too."""
    (tmp_path / "tasks").mkdir()
    own = "include: {}\ntask: {}\ndescription: 'Mind the gap. '\n"
    official = index.ROOT / "piqa" / "piqa.yaml"
    (tmp_path / "tasks" / "own.yaml").write_text(own.format(official, "piqa"))
    (tmp_path / "alone.yaml").write_text(own.format(official, "quiz"))
    records = miniatures.DATASETS["baber/piqa", None]["validation"]
    for name in ("piqa", "quiz"):
        (tmp_path / f"{name}.validation.jsonl").write_text(lines(records))
    model = HashedModel()
    names = ["piqa", str(tmp_path / "alone.yaml")]
    results = evaluate_harness(model, names, data_dir=tmp_path, include_path=[str(tmp_path / "tasks")])
    assert list(results["results"]) == ["piqa", "quiz"]
    assert all(prompt.startswith("Mind the gap. Question:") for prompt in model.prompts)


def test_without_a_directory_the_hub_is_asked_as_the_harness_does(monkeypatch):
    asked = []

    def load_dataset(path, name, **options):
        asked.append((path, name))
        return datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in ARC.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert documents(None, "arc_easy") == ARC["test"] and asked == [("allenai/ai2_arc", "ARC-Easy")]

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    told = refused("arc_easy")
    assert "Couldn't reach" in told and "--data-dir" in told and "allenai/ai2_arc" in told
