"""Out of memory, said before it happens where that can be known, and always with what to turn and by how much."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.sharding import Mesh

from slmjax.errors import UserError
from slmjax.models.counting import count_parameters
from slmjax.training.config import RunConfig

_PHRASES = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "HbmOom", "Unable to allocate")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@contextmanager
def out_of_memory_is_the_users(config: RunConfig, mesh: Mesh) -> Iterator[None]:
    """Turn the compiler's or the allocator's out-of-memory into a sentence that says what to turn, with numbers."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError, ValueError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(phrase in text for phrase in _PHRASES):
            raise
        raise _sentence(config, mesh, _sizes(text)) from error


def require_host_memory(config: RunConfig, mesh: Mesh, num_bytes: int) -> None:
    """UserError where a CPU's program needs more memory than there is: Linux grants it, and kills the run later."""
    have = host_memory_bytes()
    if mesh.devices.flat[0].platform == "cpu" and num_bytes > have:
        raise _sentence(config, mesh, [num_bytes, have])


def host_memory_bytes() -> int:
    """What this process may use at most: the machine's memory, or its container's or shell's (ulimit -v) limit."""
    limits = [1 << 62]
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    except (ImportError, ValueError, OSError):  # Windows
        pass
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits)


def _sizes(message: str) -> list[float]:
    """Bytes that a message speaks of, in its order: needed first, then what there is."""
    found = re.findall(r"(\d+(?:\.\d+)?)\s?(?:([KMGT])i?B?\b|bytes)", message)
    return [float(number) * _UNITS[unit] for number, unit in found]


def _sentence(config: RunConfig, mesh: Mesh, sizes: list[float]) -> UserError:
    t, shape = config.training, mesh.shape
    shards = shape["fsdp"] * shape["sequence"] * shape["tensor"]
    rows = t.batch_size // (shape["data"] * shape["fsdp"] * t.accumulation)
    state = 16 * count_parameters(config.model).total
    over = sizes[0] / sizes[1] if len(sizes) > 1 and sizes[0] > sizes[1] > 0 else 2.0
    # Micro-batches halve until they fit, and a micro-batch has a whole number of rows.
    pieces = min(2 ** math.ceil(math.log2(over)), rows & -rows)
    turns = [
        f"training.accumulation={pieces * t.accumulation} ({rows // pieces} rows at once)" if pieces > 1 else "",
        f"training.remat=full (now {t.remat})" if t.remat != "full" else "",
        f"a smaller training.batch_size (now {t.batch_size}) or data.sequence_length",
        f"a larger mesh.fsdp or mesh.tensor (now {shape['fsdp']} and {shape['tensor']}) on more devices",
    ]
    numbers = ", ".join(f"{_gib(size)} {what}" for size, what in zip(sizes, ("needed", "there"), strict=False))
    return UserError(
        f"Out of memory on {mesh.devices.flat[0].device_kind}{f' ({numbers})' if numbers else ''}: "
        f"parameters, gradients and AdamW take {_gib(state / shards)} a device ({_gib(state)} over {shards} shards), "
        f"and a micro-batch is {rows} rows of {config.data.sequence_length} tokens a device. "
        f"Turn, in this order: {', '.join(filter(None, turns))}."
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"
