"""The program that runs Python written by a model in a limited process.

Each program runs in a fork of this process, which it cannot outlive, and which ends with it: with its processor
seconds, its memory, the sizes of its files, without a network, processes or signals, reading nothing but Python's own
files and writing nothing but an empty directory. An audit hook refuses everything else as far as Python tells of it
(PEP 578); Linux's Landlock and seccomp refuse it where Python does not (`kernel.py`). What a program does to its judge
is another matter: as in every judge of this kind, tests and answer share an interpreter, so that one that is written
to find the token by which success is told would be believed.

Settings: {"directory": of the programs' own, "seconds": of processor time, "wait": seconds at most, "memory": bytes}.
First answer: {"layers": [...]}, what holds here. Requests: {"program"}. Answers: {"result"}: "passed", "timed out" or
"failed: ..." as of the metric `code_eval` of Hugging Face's evaluate.
"""

import _thread
import contextlib
import math
import os
import resource
import secrets
import select
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # this file is run by its path, outside the package
import kernel

del sys.path[0]

FILE_BYTES, FILES = 1 << 20, 64  # of one file that a program writes, and how often it may open one to write
_ANSWER_BYTES, _MESSAGE = 1 << 16, 200  # that are read of a fork; characters of an error
_HIDDEN = {"ctypes", "_ctypes", "kernel", "limited_program", "resource"}  # modules of this process
_STARTERS = {"_posixsubprocess", "_socket", "_multiprocessing"}  # modules that Python does not tell enough of
_PRELOADED = ("math", "re", "collections", "itertools", "functools", "heapq", "typing", "string", "random", "datetime")


def start(settings: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Enter a network of its own, and see what holds in a fork. See `limited_process_child.py`."""
    layers = ["network"] if kernel.leave_network() else []
    for name in _PRELOADED:  # once, and not in every program
        __import__(name)
    settings["readable"] = _readable()
    told = _in_fork(lambda directory: " ".join(_confine(directory, settings)), settings)
    return {"layers": [*layers, *told.split()]}, lambda request: {"result": _judge(request["program"], settings)}


def _judge(program: str, settings: dict[str, Any]) -> str:
    """The result of a program."""

    def run(directory: str) -> str:
        _confine(directory, settings)
        return _run(program)

    return _in_fork(run, settings)


def _in_fork(run: Callable[[str], str], settings: dict[str, Any]) -> str:
    """The text that a function of an empty directory returns in a fork, or what became of the fork."""
    directory = tempfile.mkdtemp(dir=settings["directory"])
    token = secrets.token_hex(16).encode("ascii")  # tells the fork's own text from what a program writes
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        write, leave = os.write, os._exit  # as they are before a program may have put others in their place
        try:
            os.close(reading)
            write(writing, b"\n" + token + run(directory).encode("ascii", "backslashreplace") + b"\n")
        finally:
            leave(0)
    os.close(writing)
    try:
        text = _read(reading, time.monotonic() + settings["wait"])
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        shutil.rmtree(directory, ignore_errors=True)
    for line in (text or b"").split(b"\n"):
        if line.startswith(token):
            return line.removeprefix(token).decode("ascii")
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    return "timed out" if text is None or killed else "failed: it ended the process"


def _read(pipe: int, until: float) -> bytes | None:
    """What was written until the other end is closed; None where that takes too long."""
    text = b""
    while len(text) <= _ANSWER_BYTES:
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        text += part
    return text


def _confine(directory: str, settings: dict[str, Any]) -> list[str]:
    """Take from this process all that a program has no need of; the layers of the kernel that held."""
    kernel.die_with_parent()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update({"HOME": directory, "TMPDIR": directory, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    tempfile.tempdir = directory
    sys.stdin = sys.stdout = sys.stderr = _Nowhere()  # type: ignore[assignment]
    seconds = max(1, math.ceil(settings["seconds"]))
    limits = {"CPU": seconds, "AS": settings["memory"], "FSIZE": FILE_BYTES, "CORE": 0, "NOFILE": 32}
    for name, value in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    kernel.renounce_privileges()
    layers = ["files"] if kernel.restrict_files(settings["readable"], directory) else []
    layers += ["calls"] if kernel.refuse_calls() else []
    for name in [name for name in sys.modules if name.split(".")[0] in _HIDDEN]:
        del sys.modules[name]
    sys.modules["__main__"] = ModuleType("__main__")
    _watch(directory, tuple(settings["readable"]), _HIDDEN if "calls" in layers else _HIDDEN | _STARTERS)
    return layers


def _readable() -> list[str]:
    """The directories and files that Python reads modules and their libraries from."""
    own = {name: path for name, path in sysconfig.get_paths().items() if "lib" in name}
    paths = [*own.values(), os.path.dirname(os.__file__), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    paths += ["/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom"]
    return sorted({os.path.realpath(path) for path in paths} | set(paths))


def _run(program: str) -> str:
    """The result of a program that runs now, in a module without `from __future__`: it would inherit that."""
    try:
        exec(program, {})
    except MemoryError:
        return "failed: it needs too much memory"
    except BaseException as error:  # SystemExit too: a program that ends early has not come to the end of its tests
        try:
            return f"failed: {str(error)[:_MESSAGE]}"
        except BaseException:
            return "failed: an error that cannot be shown"
    return "passed"


class _Nowhere:
    """Standard input, output and error that lead nowhere: what is written is lost, and nothing can be read."""

    encoding, errors, closed, newlines = "utf-8", "strict", False, None

    def write(self, text: str) -> int:
        """Take a text."""
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Take texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Do nothing."""

    def isatty(self) -> bool:
        """False."""
        return False

    readable = seekable = isatty

    def writable(self) -> bool:
        """True."""
        return True

    def read(self, size: int = -1) -> str:
        """Nothing: there is nobody to ask."""
        raise OSError("There is no input here.")

    readline = readlines = read

    def __iter__(self) -> Any:
        raise OSError("There is no input here.")


# What Python tells of (docs.python.org/3/library/audit_events.html) and calculations do; all else is refused.
_HARMLESS = {
    *("compile", "exec", "marshal.load", "marshal.loads", "marshal.dumps", "code.__new__", "function.__new__"),
    *("builtins.id", "builtins.input", "builtins.input/result", "array.__new__", "pickle.find_class", "time.sleep"),
    *("_thread.start_new_thread", "_thread.start_joinable_thread", "threading.Thread.start", "mmap.__new__"),
    *("tempfile.mkstemp", "tempfile.mkdtemp", "glob.glob", "glob.glob/2", "os.walk", "os.fwalk", "pathlib.Path.glob"),
    *("pathlib.Path.rglob", "sys.unraisablehook", "sys.excepthook", "os.putenv", "os.unsetenv", "_thread._excepthook"),
    *("object.__setattr__", "object.__delattr__", "shutil.rmtree", "shutil.move", "shutil.copyfile", "import"),
    *("sys.set_asyncgen_hooks_firstiter", "sys.set_asyncgen_hooks_finalizer", "sys._getframemodulename"),
}
_PATHS = {"os.listdir": False, "os.scandir": False, "os.mkdir": True, "os.rmdir": True, "os.remove": True}
_PATHS |= {"os.rename": True, "os.truncate": True, "os.utime": True, "open": False}
_FRAMES = {"tb_frame", "gi_frame", "cr_frame", "ag_frame"}  # lead to the judge
_FRAME_READERS = ("collections/__init__.py", "typing.py", "enum.py", "warnings.py", "logging/__init__.py")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(home: str, readable: tuple[str, ...], no_modules: set[str]) -> None:
    """Refuse, from now on, what Python tells of and is not harmless. Keeps hold of all that it uses itself."""
    library, frame_of, thread = os.path.dirname(os.__file__), sys._getframe, _thread.get_ident
    readers, looking, opened = tuple(f"{library}/{name}" for name in _FRAME_READERS), set[int](), [0]
    harmless, path_events, frames, modules = set(_HARMLESS), dict(_PATHS), set(_FRAMES), set(no_modules)
    starts, split, to_text, kind, integer, string, raw = str.startswith, str.split, bytes.decode, type, int, str, bytes
    writing, max_files, null = _WRITING, FILES, os.devnull

    def beneath(path: Any, roots: tuple[str, ...]) -> bool:
        if path is None:
            path = home
        if kind(path) is integer:  # a file that is already open
            return True
        full = to_text(path, "utf-8", "replace") if kind(path) is raw else path
        if kind(full) is not string or ".." in split(full, "/"):
            return False
        full = full if starts(full, "/") else f"{home}/{full}"
        if full == null:
            return True
        for root in roots:  # noqa: SIM110  (a program may have replaced `any`)
            if full == root or starts(full, f"{root}/"):
                return True
        return False

    def asked_by_library() -> bool:
        looking.add(thread())  # the question is itself told of
        try:
            return starts(frame_of(3).f_code.co_filename, readers)
        finally:
            looking.discard(thread())

    def allowed(event: str, args: tuple[Any, ...]) -> bool:
        if event == "sys._getframe":
            return thread() in looking or asked_by_library()
        if event == "object.__getattr__":
            return args[1] not in frames
        if event not in path_events:
            return event in harmless
        changes = path_events[event]
        if event == "open":
            changes = kind(args[2]) is integer and (args[2] & writing) != 0
            opened[0] += changes
            if opened[0] > max_files:
                return False
        if event == "os.rename" and not beneath(args[1], (home,)):
            return False
        return beneath(args[0], (home,) if changes else (home, *readable))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "import" and split(args[0], ".")[0] in modules:
            raise ImportError("This module is not for programs of strangers.")
        if not allowed(event, args):
            raise PermissionError(f"A program of strangers may not do this: {event}.")

    sys.addaudithook(hook)
