"""The device mesh: four named axes, from one CPU device to a pod.

`data`: replicas of everything, batch split. `fsdp`: parameters, optimizer and batch split (ZeRO-3).
`sequence`: each row's positions split (and parameters with `fsdp`). `tensor`: heads and feed-forward columns split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from slmjax.sharding.config import AXES, BATCH, WEIGHTS, MeshConfig

__all__ = ["AXES", "BATCH", "WEIGHTS", "MeshConfig", "axis_size", "batch_spec", "divides", "host_mesh", "make_mesh"]

Axes = str | tuple[str, ...] | None  # the mesh axes that cut one dimension of an array: one, several, none


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


def axis_size(mesh: Mesh, axes: Axes) -> int:
    """The number of parts that mesh axes cut a dimension into, 1 for None."""
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def divides(mesh: Mesh, axes: Axes, size: int) -> bool:
    """Whether mesh axes cut `size` into equal parts."""
    return size % axis_size(mesh, axes) == 0


def batch_spec() -> PartitionSpec:
    """The partition of a batch array [B, T] over the mesh."""
    return PartitionSpec(BATCH, "sequence")
