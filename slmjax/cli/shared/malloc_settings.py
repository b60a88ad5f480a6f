"""The memory allocator's settings for a command that computes on a CPU under Linux: large pages, freed memory kept.

XLA asks for the temporary memory of a step anew each time. As a rule the C library gives it back to the kernel after
the step, and the kernel clears it again for the next one: 4 to 5 GB in a full fine-tuning step of a 135M model, in
pages of 4 KiB. Both are settings that an allocator reads once, when a process begins.

glibc can keep everything freed and ask for pages of 2 MiB (GLIBC_TUNABLES), but the process may grow by a step's large
block once or twice, presumably since the hole that the block leaves no longer fits it. jemalloc grew less
(benchmarks/what_helped.md) and is preferred where it is installed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

TUNABLES_VARIABLE = "GLIBC_TUNABLES"
SWITCH = "glibc.malloc.hugetlb"
TUNABLES = {
    SWITCH: 1,  # glibc 2.35 and later; it does nothing unless the kernel gives large pages on request ("madvise")
    "glibc.malloc.mmap_max": 0,  # large blocks come from the heap too: a mapping of their own would be unmapped
    "glibc.malloc.trim_threshold": 1 << 34,  # bytes free at the heap's end before it shrinks
    "glibc.malloc.arena_max": 1,  # the heaps of further threads take no large block
}
JEMALLOC_OPTIONS = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1,narenas:1,oversize_threshold:0"
LIBRARIES = (  # where distributions and conda install jemalloc
    *(Path(f"/usr/{name}") for name in (f"lib/{getattr(sys.implementation, '_multiarch', '')}", "lib64", "local/lib")),
    Path(sys.prefix) / "lib",
)


def begin_with_kept_memory() -> None:
    """Begin this process again, with the same arguments, under these settings; at most once, and only with glibc.

    What the user has set stands: each of GLIBC_TUNABLES, MALLOC_CONF, and LD_PRELOAD, beside which no jemalloc is
    loaded. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 turns it off, and so does any other mention of that tunable.
    """
    before = [item for item in os.environ.get(TUNABLES_VARIABLE, "").split(":") if item]
    named = {item.partition("=")[0] for item in before}
    if SWITCH in named or not _has_glibc():
        return
    ours = [f"{name}={value}" for name, value in TUNABLES.items() if name not in named]
    os.environ[TUNABLES_VARIABLE] = ":".join([*before, *ours])
    library = _find_jemalloc()
    if library and not os.environ.get("LD_PRELOAD"):
        os.environ["LD_PRELOAD"] = str(library)
        os.environ.setdefault("MALLOC_CONF", JEMALLOC_OPTIONS)
    with contextlib.suppress(OSError):  # there is no interpreter to begin: go on as it is
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _has_glibc() -> bool:
    """Whether the C library is glibc of a version that has tunables (2.26)."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = (int(number) for number in version.split(".")[:2])
    except (OSError, ValueError, AttributeError):  # another system, another C library
        return False
    return name == "glibc" and (major, minor) >= (2, 26)


def _find_jemalloc() -> Path | None:
    """jemalloc's library; none where pages are not of 4 KiB: built for other pages than the kernel's, it aborts."""
    if os.sysconf("SC_PAGE_SIZE") != 4096:
        return None
    paths = (directory / "libjemalloc.so.2" for directory in LIBRARIES)
    return next((path for path in paths if path.is_file()), None)
