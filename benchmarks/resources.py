"""What a process used of the machine, and the settings of its allocator that the benchmarks compare.

An allocator's setting is read when a process begins, so it is a set of environment variables:
  library       as the C library has it: memory in pages of 4 KiB, given back as soon as it is freed
  large-pages   2 MiB pages, given back as soon as it is freed
  kept          what the command line sets: 2 MiB pages, freed memory kept for the next step
  jemalloc=LIB  the same by jemalloc, whose shared library is LIB
"""

import dataclasses
import os
import resource

from slmjax.cli.shared.malloc_settings import JEMALLOC_OPTIONS, TUNABLES

ALLOCATORS = {
    "library": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
    "large-pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "kept": {"GLIBC_TUNABLES": ":".join(f"{name}={value}" for name, value in TUNABLES.items())},
}


def environment(allocator: str) -> dict[str, str]:
    """This process's environment with the variables of an allocator; "" is as it is."""
    kind, _, library = allocator.partition("=")
    if kind == "jemalloc":
        return os.environ | {"LD_PRELOAD": library, "MALLOC_CONF": JEMALLOC_OPTIONS}
    return os.environ | (ALLOCATORS[kind] if kind else {})


@dataclasses.dataclass
class Usage:
    """Processor seconds in the program and in the kernel, page faults, peak resident bytes of the whole process."""

    user: float
    system: float
    faults: int
    peak: int

    @staticmethod
    def now() -> "Usage":
        """Since this process began."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(used.ru_utime, used.ru_stime, used.ru_minflt + used.ru_majflt, used.ru_maxrss * 1024)

    def since(self, before: "Usage", steps: int) -> dict[str, float]:
        """Of each of `steps` steps since `before`; the peak is of the whole process."""
        return {
            "user": round((self.user - before.user) / steps, 3),
            "system": round((self.system - before.system) / steps, 3),
            "faults": round((self.faults - before.faults) / steps),
            "peak": self.peak,
        }
