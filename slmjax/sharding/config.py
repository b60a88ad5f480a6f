"""The sizes of the device mesh, as a config gives them; read and checked without importing jax."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
