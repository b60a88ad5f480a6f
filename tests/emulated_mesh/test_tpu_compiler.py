"""The train step of the 1B shape compiles for real TPUs, with splash attention, head_dim 64 and documents in a row.

No TPU is needed: libtpu compiles for a described topology. Each compile takes half a minute of CPU, so they run in one
child process with its own environment, apart from this suite's eight emulated devices.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tpu_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra aot, Linux x86_64)"
)
@pytest.mark.parametrize("topology", ["v5e-16", "v6e-8"])
def test_the_step_compiles_and_fits(topology, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"  # a quarter of the time, and the step is not run here
    hlo = tmp_path / "step.hlo"
    command = [sys.executable, str(SCRIPT), "--topology", topology, "--rows-per-chip", "2", "--dump", str(hlo)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"], result
    text = hlo.read_text()
    assert "splash_mha" in text, "attention did not go to the splash kernel"
    # The square of attention logits of a row is nowhere in the program.
    assert "2048,2048,4]" not in text and "f32[2,8,4,2048,2048]" not in text
