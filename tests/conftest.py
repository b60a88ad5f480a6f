"""Shared fixtures. The environment is set before jax is first imported: eight emulated CPU devices, one cache.

What one test compiled the next one loads, in all processes of a session and in those that they start: much of the
tests' time was compiling the same small programs again.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest's workers inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="slmjax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from pathlib import Path

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """jax holds every program that it has compiled: gigabytes over a session, of which no other file needs any."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and models; SLMJAX_ASSETS names it."""
    root = Path(__file__).resolve().parent.parent
    path = Path(os.environ.get("SLMJAX_ASSETS", root.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"real data is not at hand: {path} is not a directory (set SLMJAX_ASSETS)")
    return path
