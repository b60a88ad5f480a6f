"""What the machine itself can do: bytes copied and products multiplied a second. Limits for the other measurements."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds_of(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a call whose result is waited for, after one that does not count."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def copied_bytes_per_second(*, dry_run: bool) -> float:
    """Bytes read plus bytes written by a copy of 4 GiB of random numbers within the device's memory."""
    x = jax.random.normal(jax.random.key(0), (2**20 if dry_run else 2**30,), jnp.float32)
    copy = jax.jit(lambda x: -x)
    return 2 * x.nbytes / seconds_of(lambda: copy(x))


def matmul_flops_per_second(*, dry_run: bool) -> float:
    """Of a square bfloat16 product of random numbers."""
    size = 256 if dry_run else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    calls = 1 if dry_run else 10  # so that starting them takes no share of the time

    def run() -> jax.Array:
        for _ in range(calls):
            out = product(x)
        return out

    return calls * 2 * size**3 / seconds_of(run)


def machine() -> dict[str, Any]:
    """Device, driver, versions."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    values = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "memory_gib": round(memory / 2**30, 1) if memory else None,
        "python": platform.python_version(),
        "backend": " ".join(device.client.platform_version.split()),
    }
    for name in ("jax", "jaxlib", "flax", "torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        try:
            values[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.platform == "gpu" and shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,power.limit,clocks.max.sm"
        output = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
        values["nvidia-smi"] = output.stdout.strip()
    return values
