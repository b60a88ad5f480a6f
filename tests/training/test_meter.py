"""Rates that a run reports, and the memory it has used."""

import numpy as np
import pytest

from slmjax.training.reporting.meter import device_memory_bytes, model_flops_utilization


@pytest.mark.parametrize(("peak", "devices"), [(197e12, 1), (989e12, 8)])
def test_the_utilization_is_1_at_the_peak_of_any_number_of_devices(peak, devices):
    assert model_flops_utilization(devices * peak / 6e9, 6e9, peak, devices) == pytest.approx(1)


def test_device_memory_is_at_least_what_this_process_holds():
    block = np.ones(20_000_000, np.uint8)
    assert device_memory_bytes() > block.nbytes
