"""TPU slices that are not there: devices to compile for, ahead of time, on any Linux machine with libtpu."""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax

from slmjax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One generation of TPU, per jax device."""

    hbm_gib: float  # what the compiler lets a program use
    accelerator: str  # TPU_ACCELERATOR_TYPE's prefix
    shapes: dict[int, str]  # chips in a slice -> topology
    devices_per_chip: int = 1


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_TORUS = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
CHIPS = {
    "v4": Chip(31.25, "v4", _TORUS),
    "v5e": Chip(15.75, "v5litepod", _FLAT),
    "v5p": Chip(95.0, "v5p", _TORUS),
    "v6e": Chip(31.25, "v6e", _FLAT),
}


def topology_devices(name: str) -> list[jax.Device]:
    """Descriptions of the devices of a slice named as in "v5e-16": generation and number of chips.

    They can stand in a mesh and be compiled for, not run on. Needs the package libtpu (extra `tpu` or `test`), no TPU.
    """
    generation, _, count = name.partition("-")
    chip = CHIPS.get(generation)
    if chip is None or not count.isdecimal() or int(count) not in chip.shapes:
        known = "; ".join(f"{g}-{{{','.join(map(str, c.shapes))}}}" for g, c in CHIPS.items())
        raise UserError(f"The topology {name!r} is not known; choose one of {known}.")
    # libtpu asks the metadata server of Google Cloud for what it does not find here, and locks a file.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.accelerator}-{count}")
    from jax.experimental import topologies

    platform_name = "v5" if generation == "v5p" else generation
    try:
        one_chip = {"chips_per_host_bounds": (1, 1, 1)} if count == "1" else {}  # the default is a host of four
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{platform_name}:{chip.shapes[int(count)]}", **one_chip
        )
    except Exception as error:
        raise UserError(
            f"The TPU compiler cannot be reached for {name} ({error}): install libtpu with pip install 'slmjax[tpu]'."
        ) from error
    return list(description.devices)
