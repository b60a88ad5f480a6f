"""Programs of strangers (templates, SQL) in a process with limits, which is spoken to in lines of JSON.

`limited_process_child.py` is the other side, and says what a program must define.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("limited_process_child.py")


class ProcessEndedError(Exception):
    """The process gave no answer: it was stopped after its time (`expired`), or ended by its limits or a fault."""

    def __init__(self, expired: bool):
        super().__init__("its time was up" if expired else "its process ended")
        self.expired = expired


class LimitedProcess:
    """A process that answers one request at a time, limited by the system and by the clock of whoever waits for it.

    It can write no file. It is begun by the first request, and begun anew by the one after its end. Threads may share
    it.

    Args:
        program: the file that defines what it does.
        settings: JSON-able values for the program.
        memory: bytes of address space.
        seconds: of processor time for a request.
        wait: seconds until an answer is given up.
        wait_for_start: the same until the program has started.
        isolated: run without the environment's packages and variables, on Python's standard library alone.
    """

    def __init__(
        self,
        program: Path,
        settings: dict[str, Any],
        *,
        memory: int,
        seconds: float,
        wait: float,
        wait_for_start: float,
        isolated: bool,
    ):
        self._program, self._isolated = program, isolated
        self._first = {"settings": settings, "memory": memory, "seconds": seconds}
        self._wait, self._wait_for_start = wait, wait_for_start
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The system's number of the process, None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> Any:
        """End the process, if there is one, and begin it. Returns the program's first answer.

        Raises:
            ProcessEndedError: there is none.
        """
        with self._lock:
            return self._start()

    def ask(self, request: Any) -> Any:
        """The answer to a request.

        Raises:
            ProcessEndedError: there is none.
            TypeError: the request is not JSON-able.
        """
        line = json.dumps(request)
        with self._lock:
            if self._process is None:
                self._start()
            return self._exchange(line, self._wait)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _start(self) -> Any:
        self._end()
        if self._isolated:
            options, environment = ["-I"], None
        else:
            options, environment = ["-P"], {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, *options, str(_CHILD), str(self._program)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, encoding="ascii", env=environment, **pipes)
        weakref.finalize(self, _end, self._process)
        return self._exchange(json.dumps(self._first), self._wait_for_start)

    def _exchange(self, request: str, seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            process.kill()  # reading then comes to the end of the pipe

        watch = threading.Timer(seconds, stop)
        watch.daemon = True
        watch.start()
        line = ""
        try:
            with contextlib.suppress(OSError, ValueError):  # a broken pipe, a closed one
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        finally:
            watch.cancel()
            if expired.is_set() or not line.endswith("\n"):
                self._end()
        if not line.endswith("\n"):
            raise ProcessEndedError(expired.is_set())
        return json.loads(line)

    def _end(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and not stream.closed:
            with contextlib.suppress(OSError):  # what was not yet written has nowhere to go
                stream.close()
