"""Memory and peak rate of one jax device of each kind, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One jax device."""

    peak_flops: float  # dense bfloat16 FLOP/s
    hbm_gib: float | None = None  # what the TPU compiler lets a program use; None: not known


CHIPS = {
    "v4": Chip(275e12, 31.25),
    "v5e": Chip(197e12, 15.75),
    "v5p": Chip(459e12, 95.0),
    "v6e": Chip(918e12, 31.25),
    "v7x": Chip(2307e12 / 2),  # a chip shows as two devices
    "a100": Chip(312e12),
    "h100-pcie": Chip(756e12),
    "h100": Chip(989e12),
    "h200": Chip(989e12),
    "b200": Chip(2237e12),
}

# A part of jax's `device_kind` -> chip; the first that fits holds.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "TPU7x": "v7x",
    "A100": "a100",
    "H100 PCIe": "h100-pcie",
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a jax device by its `device_kind`; None where it is not known (a CPU)."""
    return next((CHIPS[name] for part, name in _KINDS.items() if part.lower() in device_kind.lower()), None)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device, or None where it is not known (a CPU): then there is no MFU."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.peak_flops
