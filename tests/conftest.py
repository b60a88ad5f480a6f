"""Shared fixtures. The environment is set before jax is first imported: eight emulated CPU devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and models; SLMJAX_ASSETS names it."""
    root = Path(__file__).resolve().parent.parent
    path = Path(os.environ.get("SLMJAX_ASSETS", root.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"real data is not at hand: {path} is not a directory (set SLMJAX_ASSETS)")
    return path
