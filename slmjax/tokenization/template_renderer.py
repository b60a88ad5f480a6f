"""Renders a chat template in a process of its own, which is ended when it takes too long."""

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from slmjax.errors import UserError

_OUTPUT_LIMIT = 16 << 20  # characters of one rendering
_MEMORY_LIMIT = 1 << 30  # bytes of address space
_START_SECONDS = 60.0  # for Python and Jinja to be imported, on a busy machine too
_SOURCE_LIMIT = 1 << 20  # characters of a template


class TemplateRenderer:
    """A Jinja template, compiled.

    Attributes:
        has_generation: whether it holds `{% generation %}` blocks.

    Args:
        source: the template.
        seconds: after which a call is given up.

    Raises:
        UserError: no Jinja that compiles, within the limits.
    """

    def __init__(self, source: str, seconds: float):
        if len(source) > _SOURCE_LIMIT:
            raise UserError(
                f"the chat template has {len(source):,} characters, more than the {_SOURCE_LIMIT:,} allowed"
            )
        self._source, self._seconds = source, seconds
        self._lock = threading.Lock()
        self._waiting = concurrent.futures.ThreadPoolExecutor(1, "chat template")  # so that waiting can be given up
        self._process: subprocess.Popen[str] | None = None
        with self._lock:
            self._start()

    def __reduce__(self) -> tuple[type["TemplateRenderer"], tuple[str, float]]:
        return type(self), (self._source, self._seconds)

    def render(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each {"variables", "marks"} to {"text"}, or {"error", "raised"}: a sentence, whether the template wrote it.

        Raises:
            UserError: it took too long or too much memory.
        """
        with self._lock:
            if self._process is None:
                self._start()
            return self._exchange(requests, self._seconds)

    def _start(self) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        weakref.finalize(self, _end, self._process)
        limits = {"output_limit": _OUTPUT_LIMIT, "memory_limit": _MEMORY_LIMIT, "seconds": self._seconds}
        answer = self._exchange({"source": self._source, **limits}, _START_SECONDS + self._seconds)
        if "error" in answer:
            raise UserError(f"the chat template is not Jinja that can be used ({one_line(answer['error'])})")
        self.has_generation = bool(answer["generation"])

    def _exchange(self, request: Any, seconds: float) -> Any:
        assert self._process is not None
        expired = False
        asked = self._waiting.submit(_ask, self._process, json.dumps(request))
        try:
            line = asked.result(seconds)
        except concurrent.futures.TimeoutError:
            expired, line = True, ""
        if line.endswith("\n"):
            return json.loads(line)
        _end(self._process)
        self._process = None
        if expired:
            raise UserError(f"the chat template ran for more than {seconds:g} s and was stopped: does it loop?")
        raise UserError(
            f"the chat template needs too much time, or more than {_MEMORY_LIMIT >> 20} MiB, and was stopped"
        )


def _ask(process: subprocess.Popen[str], request: str) -> str:
    """The answer's line; without its end where the process ended first."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except (OSError, ValueError):  # a broken pipe, a closed one
        return ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and not stream.closed:
            with contextlib.suppress(OSError):  # what was not yet written has nowhere to go
                stream.close()


def one_line(text: str) -> str:
    """The first 300 characters, without line breaks."""
    return " ".join(text.split())[:300]
