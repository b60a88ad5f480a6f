"""The program of a `LimitedProcess`: `python limited_process_child.py PROGRAM`, a line of JSON in, one out.

Imports the standard library alone, since it also runs isolated. PROGRAM is a Python file with a function
`start(settings) -> (answer, handle)`; `handle(request) -> answer` is called for each further request, and is None where
nothing can be asked. What it imports is imported before the limits are set: memory, no files written, no core dump,
and processor time anew for the start and each request.

First line in: {"settings", "memory": bytes, "seconds"}. Out: the answer of `start`. Further lines: request, answer.
"""

import contextlib
import importlib.util
import json
import sys
import time
from types import ModuleType
from typing import Any


def load_program(path: str) -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("limited_program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def limit(name: str, value: int) -> None:
    """Set one of the system's limits, or leave it where it is already lower."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # a system without it: the waiting side's clock remains
        import resource

        kind = getattr(resource, name)
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def limit_seconds(seconds: float) -> None:
    """Limit processor time from now on: whoever waits counts too, but may itself be killed meanwhile."""
    limit("RLIMIT_CPU", int(time.process_time() + seconds) + 2)


def main() -> None:
    """Serve until the input ends."""
    requests, answers = sys.stdin, sys.stdout
    program = load_program(sys.argv[1])

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    first = json.loads(requests.readline())
    limit("RLIMIT_AS", first["memory"])
    limit("RLIMIT_FSIZE", 0)
    limit("RLIMIT_CORE", 0)
    limit_seconds(first["seconds"])
    started, handle = program.start(first["settings"])
    answer(started)
    if handle is None:
        return
    for line in requests:
        limit_seconds(first["seconds"])
        answer(handle(json.loads(line)))


if __name__ == "__main__":
    main()
