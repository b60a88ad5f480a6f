"""Rates of a run by the host's clock, and the memory it has used."""

from __future__ import annotations

import sys
import time

import jax
from jax.sharding import Mesh

from slmjax.sharding.hardware import peak_flops
from slmjax.training.recipe import Budget


class Meter:
    """Rates between two reports, for the host's clock: tokens/s, MFU, the share of time spent waiting for data."""

    def __init__(self, budget: Budget, mesh: Mesh):
        self._budget = budget
        self._peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._devices = mesh.size
        self.restart(None)

    def restart(self, step: int | None) -> None:
        """Leave evaluation, saving and compilation out of the next rate."""
        self._start, self._first, self._waited = time.perf_counter(), step, 0.0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def rates(self, step: int) -> dict[str, float]:
        """Rates since the last restart; empty until a whole step has been timed."""
        now = time.perf_counter()
        if self._first is None or step <= self._first:
            self.restart(step)
            return {}
        seconds = now - self._start
        rate = (step - self._first) * self._budget.tokens_per_step / seconds
        rates = {"tokens_per_second": rate, "data_wait": min(1.0, self._waited / seconds)}
        if self._peak is not None:
            rates["mfu"] = model_flops_utilization(rate, self._budget.flops_per_token, self._peak, self._devices)
        return rates

    def totals(self, step: int) -> dict[str, float]:
        """The tokens and memory used so far."""
        tokens = step * self._budget.tokens_per_step
        per_param = tokens / self._budget.num_params
        return {"tokens": tokens, "tokens_per_param": per_param, "memory_bytes": device_memory_bytes()}


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, peak_flops_per_device: float, num_devices: int
) -> float:
    """Model FLOPs utilization in [0, 1] (PaLM, arXiv:2204.02311, appendix B).

    flops_per_token is the model's analytic count for forward and backward (ModelConfig); what rematerialization
    computes again is not counted, and XLA's cost_analysis, which counts the body of a scan once, is never used.
    """
    return tokens_per_second * flops_per_token / (peak_flops_per_device * num_devices)


def device_memory_bytes() -> int:
    """The most bytes that any local device has held so far; on a CPU the peak resident size of the process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if any(peaks):
        return int(max(peaks))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
