"""A SQLite database that anyone's queries may be run against: read only, within limits, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from slmjax.errors import UserError

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
        self._path = Path(path).expanduser().resolve()
        self._limits = {"seconds": seconds, "max_rows": max_rows, "memory": _MEMORY_LIMIT}
        self._process: subprocess.Popen[str] | None = None
        if not self._path.is_file():
            raise UserError(f"There is no database {self._path}.")
        self._start()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of one SELECT, in the order that they came. QueryError where there are none to be had."""
        if self._process is None:
            self._start()
        answer = self._exchange({"sql": sql})
        if answer is None:
            raise QueryError("it needs too much time or memory and was stopped")
        if "error" in answer:
            raise QueryError(" ".join(str(answer["error"]).split())[:200])
        return [tuple(_value(value) for value in row) for row in answer["rows"]]

    def _start(self) -> None:
        command = [sys.executable, "-I", str(Path(__file__).with_name("process.py"))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, encoding="ascii", **pipes)
        weakref.finalize(self, _end, self._process)
        answer = self._exchange({"path": self._path.as_uri(), **self._limits})
        if answer is None or "error" in answer:
            self.close()
            reason = "its process ended" if answer is None else answer["error"]
            raise UserError(f"{self._path} cannot be read as a SQLite database ({reason}).")

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The process's answer; None where it ended first."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(_WAIT_SECONDS, process.kill)  # where the system limits no processor time
        watch.start()
        line = ""
        try:
            with contextlib.suppress(OSError, ValueError):  # a broken pipe
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        finally:
            watch.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        self.close()
        return None


def _value(value: Any) -> Any:
    return bytes.fromhex(value["blob"]) if isinstance(value, dict) else value


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and not stream.closed:
            with contextlib.suppress(OSError):
                stream.close()
