"""Two processes with four devices each, over loopback, are one process with eight."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.recipes import language_model
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.train import train
from slmjax.training import loop
from slmjax.training.checkpoints.checkpointer import Checkpointer

pytestmark = pytest.mark.slow

STEPS, BATCH = 10, 16
TIMEOUT = 120  # seconds, of one pair of processes
# Trains, and writes down which rows it was given and what it read. The second process gets SIGTERM at its step `stop`,
# if that is not 0; from then on steps take a second, of which the processes need a few to agree where they stop.
WORKER = """
import json, os, signal, sys, time
import jax
import numpy as np
config, workdir, out, port, rank, stop = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
from slmjax.recipes import language_model
from slmjax.recipes.train import train
from slmjax.training import loop
from slmjax.recipes.config import run_config
config = run_config(json.loads(config))
read, to_devices = [], loop.to_devices
def recording(batch, fields):
    read.append(batch["inputs"].copy())
    if int(stop) and len(read) == int(stop) and int(rank) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if int(stop) and len(read) >= int(stop):
        time.sleep(1)
    return to_devices(batch, fields)
loop.to_devices = recording
p = language_model.build(config)
rows = p.rows
result = train(config, workdir)
np.savez(
    out,
    rows=rows,
    read=np.stack(read),
    loss=result.metrics["loss"],
    validation_loss=result.metrics.get("validation_loss", np.nan),
    step=result.step,
    devices=[jax.local_device_count(), jax.device_count()],
)
"""


def make_config(folder: Path, steps: int = STEPS, **changes):
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "walk", "under", "the", "old", "a", "of", "and"]
    text = folder / "text.txt"
    text.write_text("\n\n".join(" ".join(rng.choice(words, 12)) + "." for _ in range(300)))
    config = default_config(
        ModelConfig(vocab_size=300, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64)
    )
    config.data.sources.text = {"path": str(text)}
    config.data.tokenizer = "train:280"
    config.data.sequence_length = 32
    config.data.validation_fraction = 0.2
    config.training.batch_size = BATCH
    config.training.eval_batches = 1
    config.checkpoint.every = 2
    config.schedule.warmup_steps = 1
    set_budget(config, steps=steps)
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    return run_config(config)


@pytest.fixture
def start_pair(tmp_path):
    """start_pair(config, workdir, stop=0): both processes, which are killed when the test ends."""
    started = []

    def start(config, workdir, stop=0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4".strip(),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        }
        pair = []
        for rank in range(2):
            log = tmp_path / f"log{len(started)}"
            with log.open("w") as stderr:
                arguments = [json.dumps(config.to_dict()), workdir, tmp_path / f"{workdir.name}{rank}.npz"]
                process = subprocess.Popen(
                    [sys.executable, "-c", WORKER, *map(str, [*arguments, port, rank, stop])],
                    env=environment,
                    stderr=stderr,
                    stdout=stderr,
                )
            process.log = log  # type: ignore[attr-defined]
            pair.append(process)
            started.append(process)
        return pair

    yield start
    for process in started:
        process.kill()
        process.wait()


def finish(pair):
    """Wait for both; fail with their logs when one does not end well."""
    end = time.monotonic() + TIMEOUT
    for process in pair:
        try:
            process.wait(timeout=max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            for other in pair:
                other.kill()
    logs = [process.log.read_text() for process in pair]
    codes = [process.wait() for process in pair]
    assert codes == [0, 0], f"{codes}\n" + "\n----\n".join(log[-3000:] for log in logs)
    return logs


def outputs(tmp_path, workdir):
    return [dict(np.load(tmp_path / f"{workdir.name}{rank}.npz")) for rank in range(2)]


def test_two_processes_stopped_and_continued_are_one_that_was_not(tmp_path, start_pair):
    """SIGTERM to one of them stops both after the same step."""
    config = make_config(tmp_path, **{"mesh.fsdp": 4, "mesh.tensor": 2})  # fsdp crosses the processes
    pair_dir, one_dir = tmp_path / "pair", tmp_path / "one"
    logs = finish(start_pair(config, pair_dir, stop=2))
    first = outputs(tmp_path, pair_dir)
    said = re.search(rf"SIGTERM: saved step (\d+) of {STEPS}", logs[0])
    assert said and {int(out["step"]) for out in first} == {int(said[1])} and 2 <= int(said[1]) < STEPS
    assert Checkpointer(pair_dir / loop.CHECKPOINTS).latest_step() == int(said[1])
    finish(start_pair(config, pair_dir))
    second = outputs(tmp_path, pair_dir)

    one_read, to_devices = [], loop.to_devices
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "to_devices", lambda b, p: (one_read.append(b["inputs"].copy()), to_devices(b, p))[1])
        result = train(config, one_dir)

    # Each process read the rows that its devices hold and no others; together, all of them.
    assert [list(out["devices"]) for out in first] == [[4, 8]] * 2
    assert sorted([*first[0]["rows"], *first[1]["rows"]]) == list(range(BATCH))
    for a, b in zip(first, second, strict=True):
        assert (a["step"], b["step"]) == (int(said[1]), STEPS)
        read = np.concatenate([a["read"], b["read"]])
        np.testing.assert_array_equal(read, np.stack(one_read)[:, a["rows"]])

    for out in second:
        assert out["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
        assert out["validation_loss"] == pytest.approx(result.metrics["validation_loss"], rel=1e-5)
    abstract = language_model.build(config).program.stored
    pair, one = (Checkpointer(workdir / loop.CHECKPOINTS).restore_latest(abstract) for workdir in (pair_dir, one_dir))
    assert pair.step == one.step == STEPS and pair.position == one.position
    for x, y in zip(jax.tree.leaves(pair.state.params), jax.tree.leaves(one.state.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
