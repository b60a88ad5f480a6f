"""Out of memory is one sentence with numbers: from the real allocator, the real TPU compiler, and before it happens."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from slmjax.errors import UserError
from slmjax.peft.config import PeftConfig
from slmjax.recipes import language_model
from slmjax.training import memory
from slmjax.training.memory import explain_out_of_memory, host_memory_bytes
from tests.tiny_run import make_base

FULL = ValueError("RESOURCE_EXHAUSTED: Error writing x: No space left on device")


@pytest.fixture
def one_device(tiny_config):
    return language_model.build(tiny_config(**{"mesh.fsdp": 1}), devices=jax.devices()[:1]).program.footprint


def sentence(one_device, raises):
    with pytest.raises(UserError) as caught, explain_out_of_memory(one_device):
        raises()
    return str(caught.value)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_state_is_counted_as_it_is(tiny_config, method):
    """Optimizer memory, an average, a frozen base in int8: all that the arrays take, and the gradients besides."""
    config = tiny_config(**{"training.ema_decay": 0.5, "mesh.fsdp": 4, "mesh.tensor": 2})
    if method == "lora":
        config = dataclasses.replace(config, peft=PeftConfig(method="lora", base="somewhere", quantize="int8"))
    program = language_model.build(config).program
    state = program.initialize(make_base(config) if method == "lora" else None)
    leaves = [*jax.tree.leaves(state), *jax.tree.leaves(state.params)]
    first = sum(next(s.data.nbytes for s in x.addressable_shards if s.device == jax.devices()[0]) for x in leaves)
    assert program.footprint.state_bytes == (first, sum(x.nbytes for x in leaves))


def test_what_the_allocator_refuses(one_device):
    """Asked for under jit, so that the error comes when the result is read, as a training step's does."""
    said = sentence(one_device, lambda: jax.device_get(jax.jit(lambda: jnp.ones((1 << 46,), jnp.uint8))()))
    assert f"{2.0**16:,.2f} GiB needed" in said and "training.accumulation=2 (4 rows at once)" in said


def test_what_python_refuses(one_device):
    assert "Out of memory on cpu: the state and its gradients take" in sentence(one_device, lambda: bytearray(1 << 46))


def test_the_numbers_tell_how_far_to_turn(one_device):
    def compiler():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out: temporaries (68.7GiB) exceeds HBM (15.75G).")

    said = sentence(one_device, compiler)
    for part in ("68.70 GiB needed, 15.75 GiB there", "training.accumulation=8 (1 rows", "remat=full (now none)"):
        assert part in said


def test_other_errors_pass(one_device):
    for error in (jax.errors.JaxRuntimeError("INTERNAL: something else"), ValueError("no"), UserError("mine"), FULL):
        with pytest.raises(type(error), match=str(error)), explain_out_of_memory(one_device):
            raise error


def test_a_cpus_program_is_weighed_before_it_runs(tiny_config, monkeypatch):
    """Linux grants memory that it does not have and kills the run when it is used."""
    p = language_model.build(tiny_config(**{"mesh.fsdp": 1}), devices=jax.devices()[:1]).program
    p.compile()
    monkeypatch.setattr(memory, "host_memory_bytes", lambda: 100_000)
    for refused in (p.initialize, dataclasses.replace(p).compile):
        with pytest.raises(UserError, match=r"Out of memory on cpu \(0\.00 GiB needed, 0\.00 GiB there\)"):
            refused()


def test_a_shells_limit_counts():
    code = "from slmjax.training.memory import host_memory_bytes; print(host_memory_bytes())"
    shell = f"ulimit -v 9000000; {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert int(done.stdout) == min(9_000_000 * 1024, host_memory_bytes()), done.stderr


TPU = """
import json, sys
from slmjax.sharding.topologies import topology_devices
from slmjax.recipes.config import run_config
from slmjax.recipes.language_model import build
build(run_config(json.loads(sys.argv[1])), devices=topology_devices("v5e-4")).program.compile()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra test)")
def test_what_the_tpu_compiler_refuses(tiny_config):
    config = tiny_config(**{"training.batch_size": 1 << 16, "data.sequence_length": 2048, "training.remat": "none"})
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-c", TPU, json.dumps(config.to_dict())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("slmjax.errors.UserError: Out of memory on TPU v5 lite ("), done.stderr[-2000:]
    assert "15.75 GiB there" in last and "training.accumulation=" in last and "training.remat=full (now none)" in last
