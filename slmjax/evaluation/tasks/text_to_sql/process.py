"""The program that runs SQL written by a model in a limited process.

SQLite's own limits stop most of what a query could do: the file is opened for reading, an authorizer refuses all but
reading, a handler ends it after its processor seconds. A single function call that takes forever is stopped by nobody
but the system, so this is a process of its own, whose processor time, memory and files are limited.

Settings: {"path", "seconds", "max_rows", "heap": bytes}. First answer: {} or {"error"}. Requests: {"sql"}. Answers:
{"rows"} or {"error"}.
"""

import sqlite3
import time
from collections.abc import Callable
from typing import Any

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "randomblob", "zeroblob", "readfile", "writefile", "edit", "fts3_tokenizer"}
_HANDLER_STEPS = 1000  # of SQLite's machine between two looks at the clock
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a string, a blob or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


def connect(path: str, heap: int) -> sqlite3.Connection:
    """The database, opened for reading; whatever a query does that is not reading is an error."""
    connection = sqlite3.connect(f"{path}?mode=ro", uri=True, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    connection.execute(f"PRAGMA hard_heap_limit={heap}")
    connection.execute("PRAGMA temp_store=2")  # in memory, which is limited; a file would be written
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # a file that is no database shows itself
    for kind, limit in _LIMITS.items():
        connection.setlimit(kind, limit)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action == sqlite3.SQLITE_FUNCTION:
        refused = (second or "").lower() in _REFUSED_FUNCTIONS
    else:
        refused = action not in _ALLOWED
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def run(connection: sqlite3.Connection, sql: str, seconds: float, max_rows: int) -> dict[str, Any]:
    """{"rows"} as lists, blobs as {"blob": hexadecimal}; or {"error"}."""
    until = time.process_time() + seconds
    connection.set_progress_handler(lambda: time.process_time() > until, _HANDLER_STEPS)
    try:
        rows = connection.execute(sql).fetchmany(max_rows + 1)
    except MemoryError:
        return {"error": "it needs too much memory"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        return {"error": f"it took more than {seconds:g} s" if str(error) == "interrupted" else str(error)}
    if len(rows) > max_rows:
        return {"error": f"it has more than {max_rows:,} rows"}
    return {"rows": [[{"blob": v.hex()} if isinstance(v, bytes) else v for v in row] for row in rows]}


def start(settings: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any] | None]:
    """Open the database. See `limited_process_child.py`."""
    seconds, max_rows = settings["seconds"], settings["max_rows"]
    try:
        connection = connect(settings["path"], settings["heap"])
    except sqlite3.Error as error:
        return {"error": str(error)}, None
    return {}, lambda request: run(connection, request["sql"], seconds, max_rows)
