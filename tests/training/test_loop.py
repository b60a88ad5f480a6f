"""Runs as a whole: stopped by signals, killed, continued, branched, and laid out over meshes."""

import dataclasses
import json
import logging
import random
import re
import signal
import time

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.recipes import language_model
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.train import train
from slmjax.training import loop
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.interrupts import StopRequest


def stop_at(monkeypatch, step):
    """Make the next run behave as if SIGTERM had come during this step."""

    def wanted(self, now):
        self.signal = signal.SIGTERM if now == step else None
        return now == step

    monkeypatch.setattr(StopRequest, "wanted", wanted)


@pytest.fixture
def seen(monkeypatch):
    """The inputs of every training batch, in the order in which the loop takes them."""
    batches = []
    original = loop.to_devices

    def recording(batch, p):
        batches.append(batch["inputs"].copy())
        return original(batch, p)

    monkeypatch.setattr(loop, "to_devices", recording)
    return batches


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A run of 6 steps that nobody stopped: (config, workdir), with checkpoints 2, 4 and 6."""
    config, workdir = tiny_config(), tmp_path_factory.mktemp("finished") / "run"
    result = train(config, workdir)
    assert (result.step, result.total_steps, result.stopped_by) == (6, 6, None)
    return config, workdir


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_next_batch_to_the_same_bits(
    tiny_config, tmp_path, monkeypatch, seen, saved, assert_bitwise_equal
):
    """With an average of the weights, and skipping nothing; test_resume.py stops at other steps."""
    config = tiny_config(**{"training.ema_decay": 0.5, "training.eval_every": 0, "data.validation_fraction": 0.0})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=""))
    train(config, tmp_path / "straight")
    straight, seen[:] = list(seen), []
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        stopped = train(config, tmp_path / "stopped")
    assert (stopped.step, stopped.stopped_by) == (3, signal.SIGTERM)
    train(config, tmp_path / "stopped")
    np.testing.assert_array_equal(np.stack(seen), np.stack(straight))
    assert len({batch.tobytes() for batch in seen}) == 6  # else the order would say nothing
    a, b = saved(config, tmp_path / "straight"), saved(config, tmp_path / "stopped")
    assert_bitwise_equal(a.state, b.state)
    assert a.step == b.step == 6 and a.position == b.position


def test_nothing_is_compiled_after_the_first_round_of_step_evaluation_and_checkpoint(
    tiny_config, tmp_path, monkeypatch, caplog
):
    at_step = {}

    def wanted(self, step):
        at_step[step] = len(caplog.records)
        return False

    monkeypatch.setattr(StopRequest, "wanted", wanted)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train(tiny_config(steps=9), tmp_path / "run")
    compiled = [record.getMessage() for record in caplog.records]
    later = [message for message in compiled[at_step[3] :] if message.startswith("Finished XLA compilation")]
    assert not later
    steps = [message for message in compiled if message.startswith("Finished XLA compilation of jit(step)")]
    assert len(steps) == 2  # the training step and the evaluation step


def test_finished_runs_are_not_run_again(finished, seen):
    config, workdir = finished
    before = Checkpointer(workdir / loop.CHECKPOINTS).all_steps()
    assert train(config, workdir).step == 6
    assert Checkpointer(workdir / loop.CHECKPOINTS).all_steps() == before and not seen


def test_a_workdir_of_another_config_is_refused_with_the_keys(finished, tiny_config):
    _, workdir = finished
    changes = {"optimizer.b2": 0.99, "training.seed": 3}
    with pytest.raises(UserError) as error:
        train(tiny_config(**changes), workdir)
    for part in ("optimizer.b2 (0.95 -> 0.99)", "training.seed (0 -> 3)", str(workdir), "--workdir"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"training\.steps \(6 -> 8\)"):  # a cosine depends on its end
        train(tiny_config(steps=8), workdir)


OTHER_MESH = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2, "training.log_every": 3, "checkpoint.every": 5}


def test_a_checkpoint_comes_back_bit_for_bit_on_another_mesh(finished, tiny_config, saved, assert_bitwise_equal):
    config, workdir = finished
    other = tiny_config(**OTHER_MESH)
    assert_bitwise_equal(saved(config, workdir).state, saved(other, workdir).state)
    train(other, workdir)  # these keys do not make it another run


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh_to_the_same_parameters(finished, tiny_config, tmp_path, monkeypatch, saved):
    config, workdir = finished
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        train(config, tmp_path / "run")
    assert train(tiny_config(**OTHER_MESH), tmp_path / "run").step == 6
    straight, moved = saved(config, workdir).state, saved(config, tmp_path / "run").state
    for a, b in zip(jax.tree.leaves(straight.params), jax.tree.leaves(moved.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_branch_begins_with_the_state_and_the_data_of_its_step(
    finished, tiny_config, tmp_path, monkeypatch, seen, saved, assert_bitwise_equal
):
    config, workdir = finished
    config_b = tiny_config(**{"training.branch_from": str(workdir), "training.branch_step": 4})
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    assert train(config_b, tmp_path / "branch").step == 6
    assert len(seen) == 2  # steps 5 and 6
    assert_bitwise_equal(saved(config, workdir).state, saved(config_b, tmp_path / "branch").state)
    assert sorted(path for path in workdir.rglob("*") if path.is_file()) == files
    # What a branch has saved itself counts from then on.
    assert train(config_b, tmp_path / "branch").step == 6 and len(seen) == 2
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        train(tiny_config(**{"training.branch_from": str(workdir), "training.branch_step": 3}), tmp_path / "none")
    with pytest.raises(UserError, match="starts at step 6, but this run ends at step 5"):
        train(tiny_config(steps=5, **{"training.branch_from": str(workdir)}), tmp_path / "late")


@pytest.mark.slow
def test_a_decay_branched_from_the_stable_phase_is_the_uninterrupted_shorter_run(
    tiny_config, tmp_path, monkeypatch, saved, assert_bitwise_equal, capsys
):
    """WSD as it is used: a long run is planned; its stable checkpoint decays now, over a third of a shorter budget."""

    def wsd(steps, **changes):
        schedule = {"schedule.name": "wsd", "schedule.warmup_steps": 2, "schedule.final_fraction": 0.0}
        return tiny_config(steps, **schedule, **{"training.log_every": 1, "training.eval_every": 0}, **changes)

    def rates(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["learning_rate"] for line in lines if line["split"] == "train"}

    shorter = {"schedule.decay_fraction": 0.34}
    train(wsd(9, **shorter), tmp_path / "straight")
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        train(wsd(100), tmp_path / "stable")
    branch = wsd(9, **shorter, **{"training.branch_from": str(tmp_path / "stable")})
    capsys.readouterr()
    assert train(branch, tmp_path / "branch").step == 9
    assert "its learning rate was 0.003, here it is 0.00" in capsys.readouterr().err
    expected, stable, decayed = (rates(tmp_path / name) for name in ("straight", "stable", "branch"))
    assert stable == {step: expected[step] for step in range(1, 7)}
    assert list(stable.values()) == pytest.approx([0.0015] + 5 * [0.003])
    assert decayed == {step: expected[step] for step in range(7, 10)}
    assert expected[6] > expected[7] > expected[8] > expected[9] == 0
    assert_bitwise_equal(saved(branch, tmp_path / "straight").state, saved(branch, tmp_path / "branch").state)


def test_evaluation_is_that_of_the_averaged_weights(tiny_config, tmp_path):
    config = tiny_config(**{"training.ema_decay": 0.9})
    p = language_model.build(config)
    corpus = open_corpus(config.data, tmp_path)
    state = p.initialize()
    moved = dataclasses.replace(state, params=jax.tree.map(lambda x: 3 * x, state.params))
    rows = list(range(config.training.batch_size))
    assert loop.evaluate(p, moved, corpus, rows) == loop.evaluate(p, state, corpus, rows)
    plain = dataclasses.replace(moved, ema=None)
    assert loop.evaluate(p, plain, corpus, rows) != loop.evaluate(p, state, corpus, rows)


MESHES = {
    "data 8": {"mesh.data": 8, "mesh.fsdp": 1},
    "fsdp 8": {},
    "fsdp 2, tensor 2, sequence 2": {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2},
    "data 2, fsdp 2, tensor 2, accumulated": {"mesh.data": 2, "mesh.tensor": 2, "training.accumulation": 2},
}


def two_steps(config, devices=None):
    """Metrics of two steps, on batches whose rows weigh unequally and hold segments."""
    p = language_model.build(config, devices=devices)
    V, (B, T) = config.model.vocab_size, p.batch["inputs"].shape
    rng = np.random.default_rng(1)
    step, state, metrics = p.compile(), p.initialize(), []
    for _ in range(2):
        batch = {name: rng.integers(0, V, (B, T)).astype(np.int32) for name in ("inputs", "targets")}
        batch["segments"] = np.sort(rng.integers(1, 3, (B, T)), axis=1).astype(np.int32)
        batch["positions"] = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        batch["loss_weights"] = (rng.random((B, T)) * np.linspace(0, 1, B)[:, None]).astype(np.float32)
        state, values = step(state, program.to_devices(batch, p))
        metrics.append(jax.device_get(values))
    return metrics, jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device(tiny_config):
    return two_steps(tiny_config(), jax.devices()[:1])


@pytest.mark.parametrize("mesh", [pytest.param("data 8", marks=pytest.mark.slow), *list(MESHES)[1:]])
def test_every_mesh_takes_the_same_steps(tiny_config, on_one_device, mesh):
    metrics, params = two_steps(tiny_config(**MESHES[mesh]))
    for one, many in zip(on_one_device[0], metrics, strict=True):
        for name, value in one.items():
            assert many[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    # AdamW divides by the gradient's size: where that is nearly 0, rounding decides; the rate is 3e-3.
    for a, b in zip(jax.tree.leaves(on_one_device[1]), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def wait_for(condition, process, seconds=120):
    """Poll until condition() holds; fail when the process ends before, or the time is up."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.stderr.seek(0)
            pytest.fail(f"exit {process.poll()}: {process.stderr.read()[-2000:]}")
        time.sleep(0.02)


def test_sigterm_saves_the_step_it_names_and_exits_with_0(tiny_config, tmp_path, start_training):
    workdir = tmp_path / "run"
    config = tiny_config(steps=1_000_000, **{"training.eval_every": 0, "checkpoint.every": 900_000})
    process = start_training(config, workdir)
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") > 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    process.stderr.seek(0)
    stderr = process.stderr.read()
    said = re.search(r"SIGTERM: saved step (\d+) of 1000000 in (\S+);", stderr)
    assert said and said[2] == str(workdir) and "Traceback" not in stderr
    restored = Checkpointer(workdir / loop.CHECKPOINTS).restore_latest(language_model.build(config).state)
    assert restored.step == int(said[1]) == int(restored.state.step) > 1
    assert restored.position["batches"]["next_index"] == restored.step
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] <= restored.step


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    tiny_config, tmp_path, start_training, saved, assert_bitwise_equal
):
    """SIGKILL at random moments, while every step saves: between steps, and in the middle of a save."""
    changes = {"checkpoint.every": 1, "training.eval_every": 3}
    config = tiny_config(steps=24, **changes)
    train(config, tmp_path / "straight")
    rng, workdir = random.Random(0), tmp_path / "killed"
    checkpointer = Checkpointer(workdir / loop.CHECKPOINTS)
    reached = []
    for _ in range(6):
        process = start_training(config, workdir)
        target = min((reached or [0])[-1] + rng.randint(1, 6), 22)
        wait_for(lambda: (checkpointer.latest_step() or 0) >= target, process)  # noqa: B023
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.wait()
        reached.append(checkpointer.latest_step() or 0)
    assert reached == sorted(reached) and reached[0] < 24, reached
    process = start_training(config, workdir)
    assert process.wait(timeout=120) == 0
    straight, killed = saved(config, tmp_path / "straight"), saved(config, workdir)
    assert straight.step == killed.step == 24 and straight.position == killed.position
    assert_bitwise_equal(straight.state, killed.state)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
