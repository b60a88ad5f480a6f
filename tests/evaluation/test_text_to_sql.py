"""Execution accuracy: an answer counts by what it finds, and nothing that it is can do harm."""

import json
import sqlite3

import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.evaluation.tasks.task import Settings
from slmjax.evaluation.tasks.text_to_sql import task as module
from slmjax.evaluation.tasks.text_to_sql.database import Database
from slmjax.evaluation.tasks.text_to_sql.records import Question
from slmjax.evaluation.tasks.text_to_sql.task import (
    TextToSQL,
    asks_for_order,
    equal,
    judge,
    training_records,
)

STATES = [("ohio", 2), ("utah", 1), ("iowa", 2)]
GOLD = 'SELECT Salias0.NAME FROM S AS Salias0 WHERE Salias0.NAME = "state0" ;'


def entry(sql, *sentences):
    return {
        "sql": sql,
        "sentences": [
            {"text": "where is state0", "variables": {"state0": name}, "question-split": split}
            for name, split in sentences
        ],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("states")
    connection = sqlite3.connect(place / "states.sqlite")
    connection.execute("CREATE TABLE s (name TEXT, size INT)")
    connection.executemany("INSERT INTO s VALUES (?, ?)", STATES)
    connection.commit()
    connection.close()
    entries = [
        entry([GOLD], ("ohio", "train"), ("utah", "dev"), ("iowa", "test")),
        entry(["SELECT NONE FROM NOWHERE ;", 'SELECT size FROM s WHERE name = "state0" ;'], ("utah", "test")),
        entry(["SELECT NONE FROM NOWHERE ;"], ("ohio", "test"), ("utah", "train")),
    ]
    (place / "states.json").write_text(json.dumps(entries))
    return place


@pytest.fixture(scope="module")
def database(data):
    with Database(data / "states.sqlite", seconds=0.3) as database:
        yield database


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("SELECT name FROM s", "select name from s order by name desc", True),  # in any order
        ("SELECT name FROM s ORDER BY name", "select name from s order by name desc", False),
        ("SELECT name FROM s ORDER BY name", "select name from s order by name;", True),
        ("SELECT size FROM s", "select distinct size from s", False),  # how often counts
        ("SELECT size, name FROM s", "select name, size from s", False),
        ("SELECT avg(size) FROM s", "select sum(size) / 3.0 from s", True),
        ("SELECT name FROM s WHERE size = 9", "select name from s where size = 8", True),  # both find nothing
        ("SELECT name FROM s", "drop table s", False),
        ("SELECT name FROM s", "", False),
        ("SELECT name FROM s", "with recursive n(i) as (select 1 union all select i from n) select * from n", False),
        ("SELECT none FROM nowhere", "select none from nowhere", False),
    ],
)
def test_an_answer_counts_by_what_it_finds(database, gold, answer, right):
    judged = judge(database, Question("q", (gold,)), answer)
    assert judged["right"] is right
    assert (judged["gold_error"] is not None) == ("nowhere" in gold)
    assert right is False or judged["error"] is None


def test_any_of_the_gold_queries_may_be_met(database):
    question = Question("q", ("SELECT none FROM nowhere", "SELECT max(size) FROM s", "SELECT min(size) FROM s"))
    for answer, right in (("select 1", True), ("select 2", True), ("select 3", False)):
        judged = judge(database, question, answer)
        assert judged["right"] is right and judged["gold_error"] is None
        assert judged["right_by_first_gold"] is False  # it cannot be run


def test_rows_are_a_multiset():
    assert equal([(1,), (2,), (1,)], [(2,), (1,), (1.0,)], ordered=False)
    assert not equal([(1,), (2,), (1,)], [(2,), (2,), (1,)], ordered=False)
    assert not equal([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert equal([(0.1 + 0.2, None, "a")], [(0.3, None, "a")], ordered=True)
    assert not equal([("1",)], [(1,)], ordered=False)


def test_only_the_order_of_the_whole_counts():
    assert asks_for_order("select a from t order by b limit 1")
    assert not asks_for_order("select a from t where b in (select c from t order by c limit 1)")
    assert not asks_for_order("select 'order by' from t")


def test_answers_are_generated_run_and_counted(data, talker, monkeypatch):
    asked = []

    def answers(_, prompts, **settings):
        asked.extend(prompts)
        assert settings["stop"] == ["\n"]
        known = {"iowa": "select 'iowa'", "utah": "select 1", "ohio": "nonsense"}
        return [next(f" {sql} " for name, sql in known.items() if name in prompt) for prompt in prompts]

    monkeypatch.setattr(module, "generate", answers)
    result = TextToSQL(batch_size=2).evaluate(talker, data, Settings(progress=False)).to_dict()
    assert asked == [f"question: where is {name}\nsql:" for name in ("iowa", "utah", "ohio")]
    assert result["questions"] == 3 and result["gold_failures"] == 1
    assert result["execution_accuracy"] == result["valid_sql"] == 2 / 3
    assert result["execution_accuracy_first_gold"] == 1 / 3
    assert [p["right"] for p in result["predictions"]] == [True, True, False]
    assert result["predictions"][0]["answer"] == "select 'iowa'"

    del asked[:]
    TextToSQL().evaluate(talker, data, Settings(limit=1, num_fewshot=1, progress=False))
    shot = "question: where is ohio\nsql: select name from s where name = 'ohio'\n\n"
    assert asked == [f"{shot}question: where is iowa\nsql:"]
    with pytest.raises(UserError, match="has 1 questions, fewer than num_fewshot=2"):
        TextToSQL().evaluate(talker, data, Settings(num_fewshot=2, progress=False))


def test_training_records_leave_out_what_no_query_answers(data):
    records, left_out = training_records(data, "train")
    completion = " select name from s where name = 'ohio'"
    assert records == [{"prompt": "question: where is ohio\nsql:", "completion": completion}]
    assert left_out == ["where is utah"]


def test_from_the_shell(data, talker, tmp_path, capsys):
    slmjax.save(talker, tmp_path / "model")
    output = tmp_path / "result.json"
    where = ["--data-dir", str(data)]
    command = ["evaluate", "--model", str(tmp_path / "model"), "--limit", "1", "--output", str(output)]
    assert main([*command, "--tasks", "text2sql", *where, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["text2sql"]
    saved = json.loads(output.read_text())["text2sql"]
    assert saved.pop("predictions")[0]["question"] == "where is iowa"
    assert saved.pop("task") == "text2sql" and shown == saved
    assert main(["data", "records", "--task", "text2sql", *where, "--output", str(tmp_path / "out")]) == 0
    assert "train.jsonl: 1 records, 1 left out: 'where is utah'" in capsys.readouterr().out
    assert len((tmp_path / "out" / "test.jsonl").read_text().splitlines()) == 2
    for wrong, said in (
        (["--tasks", "text3sql", *where], "text3sql"),
        (["--tasks", "text2sql"], "--data-dir"),
        (["--tasks", "text2sql", "--data-dir", str(tmp_path / "model")], "must hold one .json"),
        ([], "--tasks"),
    ):
        assert main([*command, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_the_geography_questions_and_their_shorter_queries(assets):
    """Every question of which a query runs has a record, and the shorter queries find what the originals find."""
    directory = assets / "data" / "sft" / "text2sql_geography"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not at hand")
    counts = {split: tuple(map(len, training_records(directory, split))) for split in ("train", "dev", "test")}
    assert counts == {"train": (548, 1), "dev": (49, 0), "test": (279, 0)}
    records = training_records(directory, "test")[0]
    assert not any("alias" in record["completion"] for record in records)
    with Database(directory / "geography.sqlite") as database:
        questions = module.read_questions(directory / "geography.json", "test")
        judged = [judge(database, q, r["completion"]) for q, r in zip(questions, records, strict=True)]
    assert all(j["right"] for j in judged)
