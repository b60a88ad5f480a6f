"""SQL of strangers: it reads, and whatever else it tries ends soon, writes nothing and takes little memory."""

import hashlib
import sqlite3
import time
from pathlib import Path

import pytest

from slmjax.errors import UserError
from slmjax.evaluation.tasks.text_to_sql.database import Database, QueryError

HOSTILE = {
    "endless recursion": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "endless rows": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "cross join": "SELECT count(*) FROM " + ", ".join(f"city AS c{i}" for i in range(12)),
    "sorted cross join": "SELECT * FROM " + ", ".join(f"city AS c{i}" for i in range(8)) + " ORDER BY random()",
    "all of memory": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT group_concat(i) FROM n",
    "a large blob": "SELECT randomblob(1000000000)",
    "zeros": "SELECT hex(zeroblob(2000000000))",
    "a large string": "SELECT printf('%.1000000000c', 'x')",
    "one call without end": "SELECT instr(t.x, substr(t.x, 500000) || 'b') FROM "
    "(SELECT printf('%.999000c', 'a') AS x) AS t",
    "a deep expression": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "a long text": "SELECT 1" + " " * 100_000,
    "drop": "DROP TABLE city",
    "delete": "DELETE FROM city",
    "update": "UPDATE city SET population = 0",
    "insert": "INSERT INTO city VALUES ('x', 'y', 1)",
    "create": "CREATE TABLE t (x)",
    "temporary table": "CREATE TEMP TABLE t AS SELECT 1",
    "attach": "ATTACH '{there}' AS other",
    "vacuum": "VACUUM INTO '{there}'",
    "pragma": "PRAGMA journal_mode = DELETE",
    "pragma that lifts a limit": "PRAGMA hard_heap_limit = 0",
    "pragma as a table": "SELECT * FROM pragma_database_list",
    "extension": "SELECT load_extension('/tmp/x')",
    "two statements": "SELECT 1; DROP TABLE city",
    "a transaction": "BEGIN EXCLUSIVE",
    "no SQL": "the largest city is tokyo",
    "nothing": "",
    "a zero byte": "SELECT 1\0 DROP",
    "a lone surrogate": "SELECT '\ud800'",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "cities #1?.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE city (name TEXT, state TEXT, population INT)")
    rows = [(f"city{i}", f"state{i % 7}", 1000 * i) for i in range(200)]
    connection.executemany("INSERT INTO city VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


@pytest.fixture(scope="module")
def database(path):
    with Database(path, seconds=0.3, max_rows=500) as database:
        yield database


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_query_finds_is_what_sqlite_finds(database, path):
    connection = sqlite3.connect(path)
    for sql in (
        "SELECT name FROM city WHERE population > 150000 ORDER BY population DESC",
        "SELECT state, count(*), avg(population) FROM city GROUP BY state",
        "SELECT x'00ff', 1.5, NULL, 'é', '日', -9223372036854775808",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT i FROM n",
    ):
        rows = database.run(sql)
        assert rows == connection.execute(sql).fetchall()
        assert rows


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_reading_within_limits_fails_and_changes_nothing(database, path, name, tmp_path):
    there, before = tmp_path / "other.sqlite", digest(path)
    began = time.process_time()
    with pytest.raises(QueryError):
        result = database.run(HOSTILE[name].replace("{there}", str(there)))
        if name == "nothing":  # SQLite takes it for a query without rows
            assert result == []
            raise QueryError
    assert time.process_time() - began < 1  # of this process: the query ran elsewhere
    assert digest(path) == before and not there.exists()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert database.run("SELECT count(*) FROM city") == [(200,)]  # the next one is not disturbed


def test_the_process_stays_small(path):
    with Database(path, seconds=10) as database:
        with pytest.raises(QueryError, match="memory"):
            database.run(HOSTILE["sorted cross join"].replace("random()", "c0.name"))
        status = Path(f"/proc/{database._process.pid}/status")
        if not status.is_file():
            pytest.skip("this system does not tell a process's memory")
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 150_000  # KiB


def test_more_rows_than_allowed_are_refused(database):
    with pytest.raises(QueryError, match="more than 500 rows"):
        database.run("SELECT 1 FROM city AS a, city AS b LIMIT 501")
    assert len(database.run("SELECT 1 FROM city AS a, city AS b LIMIT 500")) == 500


def test_files_that_are_no_database(tmp_path):
    with pytest.raises(UserError, match="There is no database"):
        Database(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("this is no database" * 100)
    with pytest.raises(UserError, match="cannot be read as a SQLite database"):
        Database(tmp_path / "text")
