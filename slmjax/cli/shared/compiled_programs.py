"""The directory in which jax keeps compiled programs, so that a command that was run before starts in seconds."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from slmjax.files import cache_directory

DEFAULTS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 << 30),  # bytes; the least recently used go first
}


def keep_compiled_programs() -> None:
    """Point jax, before it is imported, to a directory of this user and this kind of CPU.

    JAX_COMPILATION_CACHE_DIR is left alone where it is set ("" keeps nothing); XDG_CACHE_HOME moves the default,
    ~/.cache/slmjax. If that cannot be written, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = cache_directory()
    if cache is None:
        return
    directory = cache / f"compiled-{_cpu()}"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return
    if os.access(directory, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)


def _cpu() -> str:
    """A short name for the instructions of this CPU: code compiled for another one may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        able = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        able = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {able}".encode()).hexdigest()[:12]
