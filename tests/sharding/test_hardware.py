"""Chips by name and by jax's device kind, and lookups of slices that leave the environment alone."""

import os
import re

import pytest

from slmjax.errors import UserError
from slmjax.sharding.hardware import CHIPS, chip_of, peak_flops
from slmjax.sharding.topologies import SLICES, topology_devices


@pytest.mark.parametrize(
    ("kind", "chip", "teraflops"),
    [
        ("TPU v4", "v4", 275),
        ("TPU v5 lite", "v5e", 197),
        ("TPU v5e", "v5e", 197),
        ("TPU v5p", "v5p", 459),
        ("TPU v5", "v5p", 459),
        ("TPU v6 lite", "v6e", 918),
        ("TPU7x", "v7x", 2307 / 2),
        ("NVIDIA A100-SXM4-80GB", "a100", 312),
        ("NVIDIA H100 PCIe", "h100-pcie", 756),
        ("NVIDIA H100 80GB HBM3", "h100", 989),
        ("NVIDIA H200", "h200", 989),
        ("NVIDIA B200", "b200", 2237),
    ],
)
def test_device_kinds_name_their_chip(kind, chip, teraflops):
    assert chip_of(kind) is CHIPS[chip]
    assert peak_flops(kind) == CHIPS[chip].peak_flops == pytest.approx(teraflops * 1e12)


def test_what_is_no_accelerator_has_no_peak():
    assert chip_of("cpu") is None and peak_flops("cpu") is None


def test_every_slice_is_of_a_chip_whose_memory_is_known():
    for generation, slices in SLICES.items():
        assert (CHIPS[generation].hbm_gib or 0) > 10
        assert all(slices.topologies)


@pytest.mark.parametrize("name", ["v9-4", "v5e", "v5e-3", "v5e-four", "v4-1"])
def test_a_slice_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(UserError, match=re.escape(f"{name!r} is not known: choose one of v4-{{4,8,16")):
        topology_devices(name)


def test_a_lookup_leaves_the_environment_as_it_was():
    pytest.importorskip("libtpu")
    before = dict(os.environ)
    try:
        devices = topology_devices("v5e-4")
    except UserError:
        pytest.skip("the TPU compiler does not start here")
    finally:
        assert dict(os.environ) == before
    assert len(devices) == 4 and all(chip_of(device.device_kind) is CHIPS["v5e"] for device in devices)
