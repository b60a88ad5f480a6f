"""Large memory pages for a command that computes on a CPU under Linux.

XLA asks for the temporary memory of a step anew each time, and the kernel hands it out in pages of 4 KiB: 170,000 in a
step of the quickstart, a seventh of its time. glibc from 2.35 on asks for pages of 2 MiB where GLIBC_TUNABLES says so,
which it reads once, when a process begins.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def begin_with_large_pages() -> None:
    """Re-execute this process with the same arguments if that gives it larger pages; else do nothing.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 turns it off.
    """
    before = os.environ.get(TUNABLES, "")
    if TUNABLE in before or not _given_on_request():
        return
    os.environ[TUNABLES] = f"{before}:{TUNABLE}=1" if before else f"{TUNABLE}=1"
    with contextlib.suppress(OSError):  # the interpreter cannot be executed: go on without
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _given_on_request() -> bool:
    """Whether the kernel gives large pages on request and the C library knows how to ask."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = (int(number) for number in version.split(".")[:2])
        return name == "glibc" and (major, minor) >= (2, 35) and "[madvise]" in SETTING.read_text()
    except (OSError, ValueError, AttributeError):  # another system, another C library
        return False
