"""TPU slices that are not there: devices to compile for, ahead of time, on any Linux machine with libtpu."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from slmjax.errors import UserError


@dataclass(frozen=True)
class Slices:
    """The slices of one generation of TPU."""

    accelerator: str  # TPU_ACCELERATOR_TYPE's prefix
    topologies: dict[int, str]  # chips in a slice -> topology


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_TORUS = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
SLICES = {  # by the names of `hardware.CHIPS`
    "v4": Slices("v4", _TORUS),
    "v5e": Slices("v5litepod", _FLAT),
    "v5p": Slices("v5p", _TORUS),
    "v6e": Slices("v6e", _FLAT),
}


@contextmanager
def _environment_of(accelerator_type: str) -> Iterator[None]:
    """The environment in which libtpu describes a slice that is not there; what was set before stays as it was.

    Without it libtpu asks Google Cloud's metadata server, and locks a file.
    """
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": accelerator_type,
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def topology_devices(name: str) -> list[jax.Device]:
    """Descriptions of the devices of a slice named as in "v5e-16": generation and number of chips.

    They can stand in a mesh and be compiled for, not run on. Needs the package libtpu (extra `tpu` or `test`), no TPU.
    """
    generation, _, count = name.partition("-")
    slices = SLICES.get(generation)
    if slices is None or not count.isdecimal() or int(count) not in slices.topologies:
        known = "; ".join(f"{g}-{{{','.join(map(str, s.topologies))}}}" for g, s in SLICES.items())
        raise UserError(f"The topology {name!r} is not known: choose one of {known}.")
    from jax.experimental import topologies

    platform_name = "v5" if generation == "v5p" else generation
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if count == "1" else {}  # the default is a host of four
    topology = f"{platform_name}:{slices.topologies[int(count)]}"
    try:
        with _environment_of(f"{slices.accelerator}-{count}"):
            description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one_chip)
    except Exception as error:
        raise UserError(
            f"The TPU compiler cannot be reached for {name} ({error}): install libtpu with pip install 'slmjax[tpu]'."
        ) from error
    return list(description.devices)
