"""One run at a time in a workdir: a lock that names its holder, and that nobody has to remove after a crash.

On one machine the kernel decides: it lets go of a file's lock when the process that holds it dies, however it dies. On
a network disk the kernels of two machines may know nothing of each other, so the holder also gives signs of life, the
file's time of modification, and who finds the lock of another machine watches for one before taking it over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.console import say as say_on_stderr
from slmjax.errors import UserError
from slmjax.files import is_running
from slmjax.training.processes import is_primary

FILE_NAME = "run.lock"
BEAT = 10.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which the holder, on another machine, is taken for dead
_held: dict[Path, int] = {}  # workdir -> the thread of this process that holds it


@contextmanager
def hold(workdir: Path, say: Callable[[str], None] = say_on_stderr) -> Iterator[None]:
    """Keep others from training in `workdir` meanwhile. Every process of a run calls this; process 0 holds the lock.

    A thread that holds it already goes on. What this made of the workdir is removed again if nothing was put into it.

    Raises:
        UserError: another run is at work there, or the place cannot be written to.
    """
    place = workdir.resolve()
    if _held.get(place) == threading.get_ident():
        yield
        return
    lock = _Lock(workdir)
    refusal = ""
    if is_primary():
        refusal = f"{workdir} is in use by this process" if place in _held else lock.acquire(say)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        refused = bool(multihost_utils.broadcast_one_to_all(np.int32(bool(refusal))))
        refusal = refusal or (f"{workdir} is in use by another run (process 0 says by which)" if refused else "")
    if refusal:
        raise UserError(f"{refusal}: wait until it ends or stop it, or choose another --workdir.")
    _held[place] = threading.get_ident()
    try:
        yield
    finally:
        del _held[place]
        lock.release()


class _Lock:
    """The file of one workdir. `acquire` and `release` are called by one process."""

    def __init__(self, workdir: Path):
        self._workdir, self._path = workdir, workdir / FILE_NAME
        self._made: list[Path] = []  # directories, the innermost first
        self._file: int | None = None
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self, say: Callable[[str], None]) -> str:
        """Take the lock; returns "" or, where another has it, the beginning of a sentence that says who."""
        try:
            missing = [self._workdir, *self._workdir.parents]
            self._made = [path for path in missing if not path.exists()]
            self._workdir.mkdir(parents=True, exist_ok=True)
            while True:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                locked = _lock_file(file)
                if locked is not False and not _is_same_file(file, self._path):
                    os.close(file)  # its holder has just removed it
                    continue
                holder = _read_holder(self._path)
                if locked is False or not self._is_free(holder, locked is True, say):
                    os.close(file)
                    return f"{self._workdir} is in use by another run{_named(holder)}"
                self._path.write_text(json.dumps(_this_process() | {"token": self._token}) + "\n", encoding="utf-8")
                if _read_holder(self._path).get("token") != self._token:  # two at once, without help by the kernel
                    os.close(file)
                    continue
                break
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"The workdir {self._workdir} cannot be written to ({reason}): choose another.") from error
        self._file = file
        threading.Thread(target=self._beat, name="workdir-lock", daemon=True).start()
        return ""

    def release(self) -> None:
        """Give the lock back and remove its file; harmless where it was never acquired."""
        self._released.set()
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if _read_holder(self._path).get("token") == self._token:
                self._path.unlink()
        os.close(self._file)
        self._file = None
        with contextlib.suppress(OSError):  # there is something in it
            for path in self._made:
                path.rmdir()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _is_free(self, holder: dict[str, Any], locked: bool, say: Callable[[str], None]) -> bool:
        """Whether the lock that a holder wrote down is nobody's any more. `locked`: the kernel gave it to us."""
        if not holder:
            return True
        if holder.get("machine") == _machine():
            return locked or not _is_alive(holder)
        seen, told = self._path.stat().st_mtime, False
        while (now := _file_system_time(self._workdir)) - seen < SILENCE:
            if not told:
                told = True
                seconds = SILENCE - (now - seen)
                say(f"{self._workdir} was in use just now{_named(holder)}; waiting up to {seconds:.0f} s for a sign.")
            time.sleep(0.25)
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_mtime != seen:
                    return False
        return True


def _lock_file(file: int) -> bool | None:
    """Whether the kernel gave this process the lock; None where it knows of none (Windows, some network disks)."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the open file, so that no other part of us can drop it
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(path: Path) -> dict[str, Any]:
    """What the holder wrote down; {} where nothing can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _this_process() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": now,
        "machine": _machine(),
        "started": _start_of(os.getpid()),
    }


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return ""
    return f", process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _machine() -> str:
    """What tells one running kernel from another, also where containers have names of their own."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def _start_of(process: int) -> str:
    """When a process of this machine began, by the kernel's clock; "" where that is not known."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return ""


def _is_alive(holder: dict[str, Any]) -> bool:
    process = holder.get("pid")
    if not isinstance(process, int) or not is_running(process):
        return False
    return _start_of(process) == holder.get("started", "")  # else the number is another process's by now


def _file_system_time(directory: Path) -> float:
    """The time by the clock that dates the files there, which may be a server's."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".clock-") as file:
        return os.stat(file.name).st_mtime
