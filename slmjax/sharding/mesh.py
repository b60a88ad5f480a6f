"""The device mesh: four named axes, from one CPU device to a pod.

`data`: replicas of everything, batch split. `fsdp`: parameters, optimizer and batch split (ZeRO-3).
`sequence`: each row's positions split (and parameters with `fsdp`). `tensor`: heads and feed-forward columns split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from slmjax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")  # slowest network first: `tensor` neighbours are nearest
BATCH = ("data", "fsdp")
WEIGHTS = ("fsdp", "sequence")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1, which takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Sizes in the order of AXES, with -1 resolved; UserError when they do not make up the devices."""
        sizes = [getattr(self, axis) for axis in AXES]
        named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise UserError(f"{named}: each axis must be at least 1, and at most one may be -1 (what is left).")
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            there = "is 1 device" if num_devices == 1 else f"are {num_devices} devices"
            raise UserError(
                f"{named} multiply to {known}{' times -1' if -1 in sizes else ''}, but there {there}: "
                "make the product equal to the devices, or set one axis to -1."
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes (or those given), laid out along the physical network."""
    given = devices
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    if devices[0].platform == "cpu" or (given is not None and len(devices) == 1):
        array = np.asarray(devices, dtype=object).reshape(sizes)
    else:
        from jax.experimental import mesh_utils

        array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES)


def host_mesh() -> Mesh | None:
    """The host's memory, for what an accelerator cannot hold yet; None on a CPU, and beside other processes.

    None too where JAX_PLATFORMS leaves the CPU out.
    """
    if jax.default_backend() == "cpu" or jax.process_count() > 1:
        return None
    try:
        return make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
    except RuntimeError:
        return None


def batch_spec() -> PartitionSpec:
    """How a batch array [B, T] lies on the mesh."""
    return PartitionSpec(BATCH, "sequence")
