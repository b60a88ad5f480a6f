"""Out of memory: predicted where possible, and always explained by what to change and by how much."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slmjax.errors import UserError
from slmjax.training.state import TrainState

_PHRASES = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "HbmOom", "Unable to allocate")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Footprint:
    """The values that a program's memory depends on, for the sentence that explains where it went."""

    mesh: Mesh
    state: TrainState  # shapes, dtypes and shardings
    batch: Mapping[str, jax.ShapeDtypeStruct]  # of the largest step
    accumulation: int
    remat: str  # what is rematerialized, "auto" resolved

    @property
    def state_bytes(self) -> tuple[int, int]:
        """(one device's, all in all) bytes of the state and of the gradients of what is trained."""
        leaves = [*jax.tree.leaves(self.state), *jax.tree.leaves(self.state.params)]
        return sum(_device_bytes(leaf) for leaf in leaves), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@contextmanager
def explain_out_of_memory(footprint: Footprint) -> Iterator[None]:
    """Turn the compiler's or the allocator's out-of-memory into a sentence that says what to change, with numbers."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError, ValueError) as error:
        text = str(error)
        full_disk = "No space left on device" in text  # TensorStore calls that RESOURCE_EXHAUSTED too
        if full_disk or not (isinstance(error, MemoryError) or any(phrase in text for phrase in _PHRASES)):
            raise
        raise _explanation(footprint, _sizes(text)) from error


def require_host_memory(footprint: Footprint, num_bytes: int) -> None:
    """UserError where a CPU's program needs more memory than there is: Linux grants it, and kills the run later."""
    have = host_memory_bytes()
    if footprint.mesh.devices.flat[0].platform == "cpu" and num_bytes > have:
        raise _explanation(footprint, [num_bytes, have])


def host_memory_bytes() -> int:
    """The most bytes this process may use: the machine's memory, or its container's or shell's (ulimit -v) limit."""
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


def _explanation(footprint: Footprint, sizes: list[float]) -> UserError:
    mesh, shape = footprint.mesh, footprint.mesh.shape
    first = next(iter(footprint.batch.values()))
    accumulation, remat = footprint.accumulation, footprint.remat
    rows = first.shape[0] // (shape["data"] * shape["fsdp"] * accumulation)
    a_device, in_all = footprint.state_bytes
    over = sizes[0] / sizes[1] if len(sizes) > 1 and sizes[0] > sizes[1] > 0 else 2.0
    # Micro-batches halve until they fit, and a micro-batch has a whole number of rows.
    pieces = min(2 ** math.ceil(math.log2(over)), rows & -rows)
    changes = [
        f"training.accumulation={pieces * accumulation} ({rows // pieces} rows at once)" if pieces > 1 else "",
        f"training.remat=full (now {remat})" if remat != "full" else "",
        f"a smaller training.batch_size (now {first.shape[0]}) or data.sequence_length",
        f"a larger mesh.fsdp or mesh.tensor (now {shape['fsdp']} and {shape['tensor']}) on more devices",
    ]
    numbers = ", ".join(f"{_gib(size)} {what}" for size, what in zip(sizes, ("needed", "there"), strict=False))
    return UserError(
        f"Out of memory on {mesh.devices.flat[0].device_kind}{f' ({numbers})' if numbers else ''}: "
        f"the state and its gradients take {_gib(a_device)} per device ({_gib(in_all)} in all), and a micro-batch is "
        f"{rows} rows of {first.shape[-1]} tokens per device. Try, in this order: {', '.join(filter(None, changes))}."
    )


def _device_bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"
