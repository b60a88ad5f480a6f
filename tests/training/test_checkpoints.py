"""Checkpoints: what comes back is bit for bit what went in; whatever is broken, the newest good one is used."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from slmjax.errors import UserError
from slmjax.training.checkpoints.checkpointer import Checkpointer, steps_to_keep
from slmjax.training.checkpoints.config import CheckpointConfig
from tests.training.states import Moments, State, abstract, assert_same, flip_a_byte, largest_file, make_state, save


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_comes_back_is_bitwise_what_went_in(tmp_path, asynchronous):
    with_config = CheckpointConfig(asynchronous=asynchronous)
    checkpointer = Checkpointer(tmp_path / "checkpoints", with_config)
    assert checkpointer.restore_latest(abstract(make_state(0))) is None
    assert checkpointer.latest_step() is None
    position = {"n": 5, "nested": [1, {"a": "ü"}]}
    assert checkpointer.save(5, make_state(5), position=position, run_config={"lr": 1e-3})
    assert not checkpointer.save(5, make_state(6), position={}, run_config={})  # a step is never overwritten
    checkpointer.close()

    restored = Checkpointer(tmp_path / "checkpoints").restore_latest(abstract(make_state(0)))
    assert (restored.step, restored.position, restored.run_config) == (5, position, {"lr": 1e-3})
    assert_same(restored.state, make_state(5))
    # The same random numbers follow.
    np.testing.assert_array_equal(jax.random.normal(restored.state.rng), jax.random.normal(make_state(5).rng))


def test_a_save_is_a_snapshot_although_the_state_is_donated_at_once(checkpointer):
    state = {"w": jnp.zeros((1000, 1000))}
    step = jax.jit(lambda s: {"w": s["w"] + 1}, donate_argnums=0)
    for n in range(3):
        checkpointer.save(n, state, position={}, run_config={})
        for _ in range(5):
            state = step(state)
    for n in range(3):
        w = checkpointer.restore(n, abstract(state)).state["w"]
        assert (np.asarray(w) == 5 * n).all()


def test_restores_onto_another_mesh(checkpointer):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    devices = np.array(jax.devices()[:8])
    saved = make_state(1, Mesh(devices, ("fsdp",)), "fsdp")
    checkpointer.save(1, saved, position={}, run_config={})
    other = make_state(0, Mesh(devices.reshape(2, 4), ("fsdp", "tensor")), "fsdp", "tensor")
    restored = checkpointer.restore_latest(abstract(other)).state
    assert_same(restored, saved)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(other), strict=True):
        assert x.sharding == y.sharding


def test_parts_can_be_read_alone(checkpointer):
    save(checkpointer, 1, 2)
    params = abstract(make_state(0).params)
    assert_same(checkpointer.restore_params(params), make_state(2).params)
    assert_same(checkpointer.restore_params(params, step=1), make_state(1).params)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), params)
    assert {x.dtype for x in jax.tree.leaves(checkpointer.restore_params(half))} == {jnp.dtype(jnp.bfloat16)}


def in_earlier_layout(state):
    """As versions wrote it in which what is trained was the network's own tree where everything is trained."""
    bare = lambda tree: jax.tree.map(  # noqa: E731
        lambda node: node["params"] if isinstance(node, dict) and set(node) == {"params"} else node,
        tree,
        is_leaf=lambda node: isinstance(node, dict) and set(node) == {"params"},
    )
    return State(state.step, bare(state.params), bare(state.opt_state), bare(state.ema), state.rng)


def make_full_state(seed: int) -> State:
    """Of a run that trains everything: {"params": ...} in the parameters, the moments and the average."""
    state = make_state(seed)
    moments = Moments(state.opt_state[0].count, {"params": state.opt_state[0].mu})
    return dataclasses.replace(
        state, params={"params": state.params}, opt_state=(moments, (), None), ema={"params": state.params}
    )


def test_a_state_of_an_earlier_version_is_read_by_its_names_there(checkpointer):
    state = make_full_state(3)
    checkpointer.save(3, in_earlier_layout(state), position={}, run_config={})
    checkpointer.save(4, make_full_state(4), position={}, run_config={})
    for step in (3, 4):
        assert_same(checkpointer.restore(step, abstract(state)).state, make_full_state(step))
        for name in ("params", "ema"):
            found = checkpointer.restore_params(abstract(state.params), step=step, name=name)
            assert_same(found, make_full_state(step).params)
    wanted = abstract(state)
    wanted.params["params"]["extra"] = wanted.params["params"]["scale"]
    with pytest.raises(UserError, match="params/params/extra is missing"):
        checkpointer.restore(3, wanted)
    del wanted.params["params"]["extra"], wanted.params["params"]["scale"]
    with pytest.raises(UserError, match="params/scale is not expected"):
        checkpointer.restore(3, wanted)


DAMAGES = {
    "array byte flipped": lambda d: flip_a_byte(largest_file(d)),
    "array truncated": lambda d: os.truncate(largest_file(d), 100),
    "array file gone": lambda d: largest_file(d).unlink(),
    "array file empty": lambda d: os.truncate(largest_file(d), 0),
    "description flipped": lambda d: flip_a_byte(d / "state" / "_METADATA"),
    "data position empty": lambda d: os.truncate(next((d / "data").glob("metadata")), 0),
    "config gone": lambda d: shutil.rmtree(d / "config"),
    "checksums cut": lambda d: os.truncate(d / "checksums.json", 10),
    "nothing left": lambda d: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in d.iterdir()],
    "state gone, checksums too": lambda d: [shutil.rmtree(d / "state"), (d / "checksums.json").unlink()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, checkpointer, damage, capfd):
    save(checkpointer, 1, 2)
    checkpointer.close()
    DAMAGES[damage](tmp_path / "checkpoints" / "2")
    again = Checkpointer(tmp_path / "checkpoints")
    restored = again.restore_latest(abstract(make_state(0)))
    error = capfd.readouterr().err
    assert "warning: checkpoint step 2" in error and "damaged" in error and "Traceback" not in error
    assert restored.step == 1 and restored.position == {"n": 1}
    assert_same(restored.state, make_state(1))
    assert again.all_steps() == [1, 2]  # looking changes nothing on disk
    # Training goes on, saves step 2 anew, and that one is good.
    save(again, 2)
    assert_same(again.restore_latest(abstract(make_state(0))).state, make_state(2))
    again.close()


def test_without_checksums_what_orbax_notices_is_still_passed_over(tmp_path, checkpointer):
    save(checkpointer, 1, 2)
    for file in (tmp_path / "checkpoints" / "2" / "state").glob("**/d/*"):
        os.truncate(file, file.stat().st_size // 2)
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    assert checkpointer.restore_latest(abstract(make_state(0))).step == 1


def test_a_half_written_checkpoint_does_not_exist(tmp_path, checkpointer):
    save(checkpointer, 1)
    checkpointer.close()
    root = tmp_path / "checkpoints"
    for name in ("2.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp"):  # what kills in the middle of a save leave
        shutil.copytree(root / "1", root / name)
    again = Checkpointer(root)
    assert again.all_steps() == [1]
    assert again.restore_latest(abstract(make_state(0))).step == 1
    save(again, 2)
    again.close()
    assert sorted(os.listdir(root)) == ["1", "2"]


def test_when_nothing_can_be_read_the_user_is_told_and_nothing_is_moved(tmp_path, checkpointer):
    save(checkpointer, 1, 2)
    for step in ("1", "2"):
        flip_a_byte(largest_file(tmp_path / "checkpoints" / step))
    with pytest.raises(UserError, match=r"None of the checkpoints .* can be read \(steps 1, 2"):
        checkpointer.restore_latest(abstract(make_state(0)))
    with pytest.raises(UserError, match=r"step 2 .* is damaged .* other steps: 1"):
        checkpointer.restore(2, abstract(make_state(0)))
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        checkpointer.restore_params(abstract(make_state(0).params))
    assert checkpointer.all_steps() == [1, 2]


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path, checkpointer):
    with pytest.raises(UserError, match="There is no checkpoint in"):
        checkpointer.restore(10, abstract(make_state(0)))
    with pytest.raises(UserError, match="There is no checkpoint in"):
        checkpointer.restore_params({})
    save(checkpointer, 10, 20)
    with pytest.raises(UserError, match=r"no checkpoint of step 15 .* there are 10, 20"):
        checkpointer.restore(15, abstract(make_state(0)))


def test_another_model_is_not_mistaken_for_damage(tmp_path, checkpointer):
    save(checkpointer, 1, 2)
    good = abstract(make_state(0))
    kernel = good.params["segment_0"]["kernel"]
    for change, message in (
        ({"segment_0": {"kernel": kernel.update(shape=(64, 256))}}, r"kernel has shape \[64, 128\], not \[64, 256\]"),
        ({"segment_0": {"kernel": kernel.update(dtype=jnp.bfloat16)}}, "kernel is float32, not bfloat16"),
        ({"segment_0": {"kernel": kernel, "bias": kernel}}, "params/segment_0/bias is missing"),
        ({"segment_0": {}}, "params/segment_0/kernel is not expected"),
    ):
        wanted = dataclasses.replace(good, params={**good.params, **change})
        with pytest.raises(UserError, match=message):
            checkpointer.restore_latest(wanted)
    assert checkpointer.all_steps() == [1, 2]


def test_keeping_adds_up():
    scores = {100: 3.0, 200: 1.0, 300: None, 400: 2.0, 500: float("nan"), 600: 5.0, 700: 4.0}
    assert steps_to_keep(scores, CheckpointConfig(keep_last=2)) == {600, 700}
    assert steps_to_keep(scores, CheckpointConfig(keep_last=1, keep_every=300)) == {300, 600, 700}
    assert steps_to_keep(scores, CheckpointConfig(keep_last=1, keep_best=2)) == {200, 400, 700}
    assert steps_to_keep(scores, CheckpointConfig(keep_last=1, keep_every=500, keep_best=1)) == {200, 500, 700}
    assert steps_to_keep({}, CheckpointConfig(keep_best=1)) == set()


def test_what_is_kept_on_disk_survives_a_restart(tmp_path):
    config = CheckpointConfig(keep_last=1, keep_every=4, keep_best=1)
    losses = {1: 3.0, 2: 1.0, 3: 2.5, 4: 2.0, 5: 2.2}
    for step, loss in losses.items():
        checkpointer = Checkpointer(tmp_path, config)
        save(checkpointer, step, validation_loss=loss)
        checkpointer.close()
    assert Checkpointer(tmp_path).all_steps() == [2, 4, 5]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mount.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_a_clear_error_and_the_last_good_checkpoint_stays(small_disk, asynchronous, capfd):
    make = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (300, 1000))}  # noqa: E731
    checkpointer = Checkpointer(small_disk / "checkpoints", CheckpointConfig(asynchronous=asynchronous))
    with pytest.raises(
        UserError, match=r"full: checkpoint step 3 needs up to 0.0012 GB .* \(last good checkpoint: step 2\)"
    ):
        for step in (1, 2, 3):
            checkpointer.save(step, make(step), position={}, run_config={})
        checkpointer.close()
    assert "Traceback" not in capfd.readouterr().err
    assert sorted(os.listdir(small_disk / "checkpoints")) == ["1", "2"]  # what was half written gives its space back
    assert_same(checkpointer.restore_latest(abstract(make(0))).state, make(2))
    shutil.rmtree(small_disk / "checkpoints" / "1")  # the user makes room, and the same run can go on
    checkpointer.save(3, make(3), position={}, run_config={})
    checkpointer.close()
    assert checkpointer.all_steps() == [2, 3]
    checkpointer.close()


_SAVES_UNTIL_KILLED = """
import sys
import jax, numpy as np
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.checkpoints.config import CheckpointConfig
checkpointer = Checkpointer(sys.argv[1], CheckpointConfig(keep_last=2))
for step in range(int(sys.argv[2]), 10_000):
    noise = jax.random.normal(jax.random.key(step), (500, 1000))
    state = {"w": jax.numpy.full((500, 1000), step, "float32"), "noise": noise}
    checkpointer.save(step, state, position={"n": step}, run_config={})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_at_most_the_save_in_flight(tmp_path, capfd):
    begin = 0
    wanted = {name: jax.ShapeDtypeStruct((500, 1000), jnp.float32) for name in ("w", "noise")}
    for seed in range(4):
        command = [sys.executable, "-c", _SAVES_UNTIL_KILLED, str(tmp_path), str(begin)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(4):
            started = int(child.stdout.readline())
        time.sleep(np.random.default_rng(seed).uniform(0, 0.3))
        child.kill()
        started = int((child.communicate()[0].split() or [started])[-1])
        restored = Checkpointer(tmp_path).restore_latest(wanted)
        assert started - 1 <= restored.step <= started + 1 and restored.position == {"n": restored.step}
        assert (np.asarray(restored.state["w"]) == restored.step).all()
        noise = jax.random.normal(jax.random.key(restored.step), (500, 1000))
        np.testing.assert_array_equal(restored.state["noise"], noise)
        begin = restored.step + 1
    assert "damaged" not in capfd.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "damaged" in path.name]


@pytest.mark.parametrize("arguments", [{"every": 0}, {"keep_last": 0}, {"keep_best": -1}])
def test_impossible_settings_are_refused_by_name(arguments):
    with pytest.raises(UserError, match=f"checkpoint.{next(iter(arguments))}"):
        CheckpointConfig(**arguments)
