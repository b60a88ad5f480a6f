"""A SQLite database that anyone's queries may be run against: read only, within limits, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.limited_process import LimitedProcess, ProcessEndedError

_PROGRAM = Path(__file__).with_name("process.py")
_MEMORY_LIMIT = 1 << 28  # bytes of address space; SQLite itself gets a quarter
_WAIT_SECONDS = 120.0  # until the process answers, on a machine that is busy with other things too


class QueryError(Exception):
    """A query that has no result: wrong, refused, or beyond the limits. Its text says which."""


class Database:
    """A SQLite file and the process that reads it, which is begun anew after a query that had to be killed.

    Args:
        path: of the file.
        seconds: of processor time for a query.
        max_rows: that a query may have.

    Raises:
        UserError: there is no such database.
    """

    def __init__(self, path: str | Path, *, seconds: float = 2.0, max_rows: int = 10_000):
        self._path = local_path(path, "The database").resolve()
        if not self._path.is_file():
            raise UserError(f"There is no database {self._path}.")
        self._process = LimitedProcess(
            _PROGRAM,
            {"path": self._path.as_uri(), "seconds": seconds, "max_rows": max_rows, "heap": _MEMORY_LIMIT // 4},
            memory=_MEMORY_LIMIT,
            seconds=seconds,
            wait=_WAIT_SECONDS,
            wait_for_start=_WAIT_SECONDS,
            isolated=True,
        )
        try:
            reason = self._process.start().get("error")
        except ProcessEndedError as error:
            reason = str(error)
        if reason:
            self.close()
            raise UserError(f"{self._path} cannot be read as a SQLite database ({reason}).")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of one SELECT, in the order that they came. QueryError where there are none to be had."""
        try:
            answer = self._process.ask({"sql": sql})
        except ProcessEndedError as error:
            raise QueryError("it needs too much time or memory and was stopped") from error
        if "error" in answer:
            raise QueryError(" ".join(str(answer["error"]).split())[:200])
        return [tuple(_value(value) for value in row) for row in answer["rows"]]


def _value(value: Any) -> Any:
    return bytes.fromhex(value["blob"]) if isinstance(value, dict) else value
