"""Programs written by a model, run and counted: the metric `code_eval` of Hugging Face's evaluate, within limits."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from slmjax.console import warn
from slmjax.errors import UserError
from slmjax.limited_process import LimitedProcess, ProcessEndedError

SECONDS = 3.0  # of processor time for a program, as in code_eval
_PROGRAM = Path(__file__).with_name("process.py")
_MEMORY = 1 << 30  # bytes of address space of a program
_START_SECONDS = 120.0  # until a process has started, on a machine that is busy with other things too
_LAYERS = ("network", "files", "calls")
NOT_ALLOWED = (
    "These tasks run programs that the model has written: allow it by --allow-code (of the harness's own command line: "
    "--confirm_run_unsafe_code)."
)


class Executor:
    """Processes that run one program at a time each; they start with the first program.

    Args:
        seconds: of processor time for a program; it may take twice as long by the clock.
        workers: processes; as many as there are processors, at most 4, by default.
    """

    def __init__(self, *, seconds: float = SECONDS, workers: int = 0):
        self._seconds, self._workers = seconds, workers or min(4, os.cpu_count() or 1)
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._idle: list[LimitedProcess] = []
        self._lock = threading.Lock()
        self._layers: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The directory of the programs' own ones; it begins and ends with the processes."""
        self._begin()
        assert self._place is not None
        return self._place.name

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers of the kernel that hold here: "network", "files", "calls"."""
        self._begin()
        return self._layers

    def run(self, programs: Sequence[str]) -> list[str]:
        """The result of each program, in their order: "passed", "timed out" or "failed: ..."."""
        self._begin()
        with self._lock:
            if len(programs) == 1:
                return [self._judge(programs[0])]
            with ThreadPoolExecutor(self._workers) as pool:
                return list(pool.map(self._judge, programs))

    def close(self) -> None:
        """End the processes and remove what they left."""
        with self._lock:
            for process in self._idle:
                process.close()
            self._idle = []
            if self._place is not None:
                self._place.cleanup()
                self._place = None

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        with self._lock:
            if self._place is None:
                self._start()

    def _start(self) -> None:
        if not hasattr(os, "fork"):
            raise UserError("Programs of a model can be run on Linux and macOS only: leave such tasks out here.")
        self._place = tempfile.TemporaryDirectory(prefix="programs-", ignore_cleanup_errors=True)
        settings = {
            "directory": os.path.realpath(self._place.name),
            "seconds": self._seconds,
            "wait": 2 * self._seconds,
            "memory": _MEMORY,
        }
        self._idle = [
            LimitedProcess(
                _PROGRAM,
                settings,
                memory=_MEMORY,
                seconds=60.0,  # of the process itself: each fork has its own
                wait=2 * self._seconds + _START_SECONDS,
                wait_for_start=_START_SECONDS,
                isolated=True,
            )
            for _ in range(self._workers)
        ]
        try:
            layers = self._layers = tuple(self._idle[0].start()["layers"])
        except ProcessEndedError as error:
            raise UserError(f"The process that runs programs cannot be started here ({error}).") from error
        if "calls" not in layers or "files" not in layers:
            warn(
                "this system has not all that keeps a program in its limits (of Linux: "
                f"{', '.join(name for name in _LAYERS if name in layers) or 'nothing'}); what Python itself tells of "
                "is refused, and time and memory are limited."
            )

    def _judge(self, program: str) -> str:
        process = self._idle.pop()
        try:
            return str(process.ask({"program": program})["result"])
        except ProcessEndedError:
            return "timed out"
        finally:
            self._idle.append(process)


class CodeEval:
    """The metric, as the tasks humaneval and mbpp of lm-evaluation-harness call it."""

    def __init__(self, executor: Executor | None = None):
        self.allowed = False
        self._executor = executor or Executor()

    def close(self) -> None:
        """End the processes; the next program begins them anew."""
        self._executor.close()

    def compute(
        self,
        *,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = SECONDS,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """pass@k of the candidates of each task, each run with its task's test behind it, and each one's result.

        Raises:
            UserError: running programs was not allowed.
        """
        del num_workers, timeout
        if not self.allowed:
            raise UserError(NOT_ALLOWED)
        programs = [
            f"{one}\n{test}" for candidates, test in zip(predictions, references, strict=True) for one in candidates
        ]
        results = iter(self._executor.run(programs))
        details: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for task, candidates in enumerate(predictions):
            for number in range(len(candidates)):
                result = next(results)
                entry = {"task_id": task, "passed": result == "passed", "result": result, "completion_id": number}
                details.setdefault(task, []).append((number, entry))
        total = [len(entries) for entries in details.values()]
        right = [sum(entry["passed"] for _, entry in entries) for entries in details.values()]
        scores = {
            f"pass@{n}": float(np.mean([pass_at_k(*counts, n) for counts in zip(total, right, strict=True)]))
            for n in k
            if min(total, default=0) >= n
        }
        return scores, details


def pass_at_k(total: int, right: int, k: int) -> float:
    """The chance that one of `k` answers drawn from `total` is among the `right` (Chen et al. 2021, 2107.03374)."""
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


CODE_EVAL = CodeEval()


def install(allow: bool) -> None:
    """Put this metric where lm-evaluation-harness loads `code_eval`; to be called before tasks are built.

    Where it is not allowed, building a task that runs programs raises a UserError. The package `evaluate`, which takes
    seconds to import, is imported when something else of it is wanted.
    """
    CODE_EVAL.allowed = allow
    found = sys.modules.get("evaluate")
    if found is None:
        spec = importlib.util.find_spec("evaluate")
        sys.modules["evaluate"] = found = ModuleType("evaluate")
        found.__spec__, found.__path__ = spec, list(spec.submodule_search_locations or ()) if spec else []
        found.__dict__.update(load=_load, __getattr__=_attribute)
    elif found.load is not _load:
        _replace_load(found)


def _load(path: str, *args: Any, **settings: Any) -> Any:
    if path == "code_eval":
        if not CODE_EVAL.allowed:
            raise UserError(NOT_ALLOWED)
        return CODE_EVAL
    return _evaluate().slmjax_load(path, *args, **settings)


def _attribute(name: str) -> Any:
    """Something else of the package. What looks through all modules asks for names with underscores."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(_evaluate(), name)


def _evaluate() -> Any:
    """The package itself."""
    if "__file__" not in vars(sys.modules["evaluate"]):
        del sys.modules["evaluate"]
        _replace_load(importlib.import_module("evaluate"))
    return sys.modules["evaluate"]


def _replace_load(package: Any) -> None:
    package.slmjax_load, package.load = package.load, _load
