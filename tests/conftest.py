"""Shared fixtures. The environment is set before jax is first imported: eight emulated CPU devices, one cache.

Most of the tests' time is XLA compiling small programs that run once. So the tests compile with little effort (an
eighth of the time), and what one test compiled the next one loads, in all processes of a session and in those that they
start. A test that is about the program as users get it starts a process without these settings.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

DEVICES = "--xla_force_host_platform_device_count=8"
# XLA's older CPU emitters compile the same fusions in a third of the time.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def _accepts(flags: str) -> bool:
    """Whether this jaxlib knows these flags; one that it does not know ends the process."""
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return not subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], capture_output=True, env=environment
    ).returncode


os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest's workers inherit all of this
    cache = os.environ.get("SLMJAX_TEST_CACHE")  # kept, for another session
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache or tempfile.mkdtemp(prefix="slmjax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if not cache:
        atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags = f"{flags} {DEVICES}".strip()
    if "xla_cpu_use_fusion_emitters" not in flags and _accepts(QUICK):
        flags = f"{flags} {QUICK}"
    os.environ["XLA_FLAGS"] = flags

import gc
from collections import Counter
from pathlib import Path

import jax
import pytest

# Tracing makes objects by the million, nearly none of which is garbage in a circle.
gc.set_threshold(100_000, 20, 100)

# Files that take longest, which start first so that all processes end together; docs/testing.md says how to keep it.
LONGEST_FIRST = (
    "emulated_mesh/test_tpu_compiler.py",
    "benchmarks",
    "multiprocess",
    "recipes",
    "colab",
    "inference",
    "tokenization",
    "training",
    "cli",
    "peft",
    "models",
    "parity",
    "emulated_mesh",
    "formats",
)


def pytest_collection_modifyitems(items):
    def place(item):
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((n for n, start in enumerate(LONGEST_FIRST) if path.startswith(start)), len(LONGEST_FIRST))

    items.sort(key=place)  # stable: the order within a file stays


def pytest_terminal_summary(terminalreporter):
    """The seconds of all tests, setup and teardown included, by directory: what docs/testing.md keeps an account of."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(report.nodeid.split("::")[0].split("/")[:2])] += report.duration
    if sum(seconds.values()) > 60:
        shares = ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.most_common())
        terminalreporter.write_line(f"{sum(seconds.values()):.0f} s in tests, of all processes: {shares}")


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """jax holds every program that it has compiled: gigabytes over a session, of which no other file needs any.

    A file that leaves the compiler at another effort makes all that follow in its process several times slower.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    yield
    jax.clear_caches()
    assert jax.config.read("jax_disable_most_optimizations") == before


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and models; SLMJAX_ASSETS names it."""
    root = Path(__file__).resolve().parent.parent
    path = Path(os.environ.get("SLMJAX_ASSETS", root.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"real data is not at hand: {path} is not a directory (set SLMJAX_ASSETS)")
    return path
