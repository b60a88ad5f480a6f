"""Questions read as they are meant, and queries written shorter that mean the same."""

import json
import sqlite3

import pytest

from slmjax.errors import UserError
from slmjax.evaluation.tasks.text_to_sql.forms import compact, lower_case
from slmjax.evaluation.tasks.text_to_sql.records import Question, read_questions, training_record, write_records

ENTRY = {
    "sql": ['SELECT Calias0.A FROM C AS Calias0 WHERE Calias0.B = "b1" ;', "SELECT 1 ;"],
    "sentences": [
        {"text": "a of b1 and b10", "variables": {"b1": "x", "b10": "y"}, "question-split": "train"},
        {"text": "a of b1", "variables": {"b1": "Z"}, "question-split": "test"},
    ],
}
FORMS = {
    # One table: neither its alias nor its name is needed.
    'SELECT CITYalias0.NAME FROM CITY AS CITYalias0 WHERE CITYalias0.STATE = "New York" ;': (
        "select name from city where state = 'New York'"
    ),
    # Each SELECT has its own.
    "SELECT MAX( CITYalias0.AREA ) FROM CITY AS CITYalias0 WHERE CITYalias0.AREA NOT IN "
    "( SELECT MAX( CITYalias1.AREA ) FROM CITY AS CITYalias1 ) ;": (
        "select max(area) from city where area not in (select max(area) from city)"
    ),
    # Several tables: their names are.
    "SELECT CITYalias0.NAME FROM CITY AS CITYalias0 , STATE AS STATEalias0 WHERE "
    "CITYalias0.STATE = STATEalias0.NAME ;": ("select city.name from city, state where city.state = state.name"),
    # The same table twice: numbers tell them apart.
    "SELECT CITYalias0.NAME FROM CITY AS CITYalias0 , CITY AS CITYalias1 WHERE CITYalias0.AREA > CITYalias1.AREA ;": (
        "select city0.name from city as city0, city as city1 where city0.area > city1.area"
    ),
    # A derived table and its column.
    "SELECT MAX( DERIVED_TABLEalias0.DERIVED_FIELDalias0 ) FROM ( SELECT COUNT( 1 ) AS DERIVED_FIELDalias0 "
    "FROM CITY AS CITYalias0 GROUP BY CITYalias0.STATE ) AS DERIVED_TABLEalias0 ;": (
        "select max(n0) from (select count(1) as n0 from city group by state) as t0"
    ),
    # A column of the SELECT around.
    "SELECT STATEalias0.NAME FROM STATE AS STATEalias0 WHERE EXISTS ( SELECT 1 FROM CITY AS CITYalias0 WHERE "
    "CITYalias0.STATE = STATEalias0.NAME ) ;": (
        "select name from state where exists (select 1 from city where state = state.name)"
    ),
    # Nothing to shorten.
    "select a , b from t where x >= 1.5 and y <> 'It''s' ;": "select a, b from t where x >= 1.5 and y <> 'It''s'",
}


@pytest.fixture(scope="module")
def database():
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE city (name, state, area); CREATE TABLE state (name, area);"
        "CREATE TABLE t (a, b, x, y); INSERT INTO t VALUES (1, 2, 3, 'z');"
        "INSERT INTO city VALUES ('a', 'New York', 3), ('b', 's', 2), ('c', 's', 1), ('d', 'u', 2);"
        "INSERT INTO state VALUES ('New York', 9), ('s', 8), ('v', 7);"
    )
    return connection


@pytest.mark.parametrize("sql", FORMS)
def test_a_shorter_query_finds_the_same(sql, database):
    assert compact(sql) == FORMS[sql]
    wanted = database.execute(sql).fetchall()
    assert wanted
    for form in (compact(sql), lower_case(sql)):
        assert database.execute(form).fetchall() == wanted


def test_a_shorter_query_is_its_own_shorter_form():
    for form in FORMS.values():
        assert compact(form) == form


@pytest.mark.parametrize("text", ["", ";", "select", "((", "))) as", "as as as", "xalias0", "xalias0 .", "'open"])
def test_what_is_no_query_is_not_stumbled_over(text):
    compact(text), lower_case(text)


def test_questions_are_filled_in_and_divided(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([ENTRY]))
    (train,), (test,) = (read_questions(tmp_path / "q.json", split) for split in ("train", "test"))
    assert train.text == "a of x and y" and train.queries[0].endswith('= "x" ;')
    assert test.text == "a of Z" and '"Z"' in test.queries[0] and len(test.queries) == 2
    assert test.prompt == "question: a of Z\nsql:"
    with pytest.raises(UserError, match="no question of the split 'dev'"):
        read_questions(tmp_path / "q.json", "dev")


@pytest.mark.parametrize("text", ["{", "[1]", '[{"sql": []}]', '{"a": 1}', "[]", '[{"sentences": 3, "sql": ["x"]}]'])
def test_files_of_something_else(tmp_path, text):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(UserError, match=r"q\.json"):
        read_questions(tmp_path / "q.json", "train")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_questions(tmp_path / "none.json", "train")
    with pytest.raises(UserError, match="'testing'"):
        read_questions(tmp_path / "none.json", "testing")


def test_the_shortest_form_with_the_same_result_is_learned(tmp_path):
    question = Question("q", ("A", "SELECT Xalias0.Y FROM X AS Xalias0 ;"))

    def record(same):
        return training_record(question, same)

    assert record(lambda query, form: None) is None  # no query runs
    second = record(lambda query, form: None if query == "A" else True)
    assert second == {"prompt": "question: q\nsql:", "completion": " select y from x"}
    careful = record(lambda query, form: None if query == "A" else "alias" in form)
    assert careful["completion"] == " select xalias0.y from x as xalias0"
    assert write_records([second, careful], tmp_path / "r.jsonl") == 2
    assert [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [second, careful]
