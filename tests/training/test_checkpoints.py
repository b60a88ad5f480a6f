"""Checkpoints: what comes back is bit for bit what went in; whatever is broken, the newest good one is used."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.errors import UserError
from slmjax.training.checkpoints.checkpointer import Checkpointer, steps_to_keep
from slmjax.training.checkpoints.checksums import write_checksums
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.checkpoints.positions import decode_position, encode_position


class Moments(NamedTuple):
    count: jax.Array
    mu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    rng: jax.Array


def make_state(seed: int, mesh: Mesh | None = None, *axes: str) -> State:
    """All that a training state may hold: bfloat16, scalars, named tuples, None, a typed key, sharded arrays."""
    mesh = mesh or Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))  # noqa: E731
    kernel, mu = (place(jax.random.normal(next(keys), (64, 128)), *axes) for _ in range(2))
    return State(
        step=place(jnp.int32(seed)),
        params={"segment_0": {"kernel": kernel}, "scale": place(jnp.arange(8, dtype=jnp.bfloat16))},
        opt_state=(Moments(place(jnp.int32(3)), {"kernel": mu}), (), None),
        ema=None,
        rng=place(jax.random.fold_in(jax.random.key(7), seed)),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b) -> None:
    """Bitwise, with the tree's structure and the arrays' types."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(checkpointer: Checkpointer, *steps: int, **metrics: float) -> None:
    for step in steps:
        checkpointer.save(step, make_state(step), position={"n": step}, run_config={"lr": 0.1}, metrics=metrics)
    checkpointer.wait()


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", CheckpointConfig())
    yield checkpointer
    checkpointer.close()


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


DTYPES = (
    "bool",
    "int8",
    "<u2",
    ">i4",
    "int64",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "<U3",
)


def random_array(rng) -> np.ndarray:
    """Any bits, NaNs among them, of any dtype; also 0-d, empty and not contiguous."""
    dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
    shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
    if dtype.kind in "bU":
        return rng.integers(0, 2, shape).astype(dtype)
    words = rng.integers(0, 256, (*shape, dtype.itemsize)).astype(np.uint8)
    array = words.view(dtype)[..., 0]
    return array.T if rng.integers(2) else array


def random_position(rng, depth=0) -> dict:
    """A nested dict of JSON values and arrays, NumPy's and jax's."""
    leaves = [None, True, 3, 2**70, -0.1, float("inf"), "ü/.", [1, {"a": [None]}], [], "", rng.random()]
    position = {}
    for key in rng.permutation(["a", "b/c", "0", "", "ä . %", "layout", "params"])[: rng.integers(1, 6)]:
        kind = rng.integers(4)
        if kind == 0 and depth < 3:
            position[str(key)] = random_position(rng, depth + 1) if rng.integers(4) else {}
        elif kind == 1:
            position[str(key)] = random_array(rng)
        elif kind == 2:
            position[str(key)] = jnp.asarray(rng.random(rng.integers(0, 3, rng.integers(0, 3))), jnp.bfloat16)
        else:
            position[str(key)] = leaves[rng.integers(len(leaves))]
    return position


def assert_same_position(found, wanted, path="") -> None:
    """The same keys and JSON values, and arrays of the same dtype, shape and bits, on the host and writable."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and found.keys() == wanted.keys(), path
        for key in wanted:
            assert_same_position(found[key], wanted[key], f"{path}/{key}")
    elif isinstance(wanted, np.ndarray | jax.Array):
        wanted = np.asarray(wanted)
        assert type(found) is np.ndarray and found.flags.writeable, path
        assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes()), path
    else:
        assert type(found) is type(wanted) and found == wanted, path


def test_any_position_comes_back_bit_for_bit():
    for seed in range(200):
        position = random_position(np.random.default_rng(seed))
        item, arrays = encode_position(position)
        found = decode_position(json.loads(json.dumps(item)), {name: array.copy() for name, array in arrays.items()})
        assert_same_position(found, position)


def test_a_position_with_arrays_is_part_of_the_checkpoint(checkpointer):
    positions = {
        seed: {"batches": random_position(np.random.default_rng(seed)), "buffer": np.arange(seed), "n": np.int64(seed)}
        for seed in (1, 2, 3)
    }
    for seed, position in positions.items():
        buffer = position["buffer"].copy()
        checkpointer.save(seed, make_state(seed), position=position | {"buffer": buffer}, run_config={})
        buffer[:] = -1  # the save is a snapshot
    for seed, position in positions.items():
        found = checkpointer.restore(seed, abstract(make_state(0))).position
        assert_same_position(found, position | {"n": np.asarray(position["n"])})


def test_a_position_on_several_devices_is_saved_whole(checkpointer):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), P("data"))
    buffer = jax.device_put(jnp.arange(16.0), sharding)
    checkpointer.save(1, make_state(1), position={"buffer": buffer}, run_config={})
    np.testing.assert_array_equal(
        checkpointer.restore(1, abstract(make_state(0))).position["buffer"], np.arange(16, dtype=np.float32)
    )


def test_without_arrays_there_is_no_item_of_them(tmp_path, checkpointer):
    checkpointer.save(1, make_state(1), position={"n": 1, "empty": np.zeros((2, 0), np.int16)}, run_config={})
    checkpointer.wait()
    assert not (tmp_path / "checkpoints" / "1" / "arrays").exists()
    empty = checkpointer.restore(1, abstract(make_state(0))).position["empty"]
    assert (empty.dtype, empty.shape) == (np.int16, (2, 0))


@pytest.mark.parametrize("wrong", [{1: 2}, {"a": object()}, {"a": np.array([None])}, {"a": jax.random.key(0)}])
def test_a_position_that_cannot_come_back_is_not_saved(checkpointer, wrong):
    save(checkpointer, 1)
    with pytest.raises(TypeError):
        checkpointer.save(2, make_state(2), position=wrong, run_config={})
    save(checkpointer, 3)
    assert checkpointer.all_steps() == [1, 3]


@pytest.mark.parametrize("early", [{}, {"early_stopping": {"best": 1.5, "bad": 2}}])
def test_the_position_of_an_earlier_version_is_read_as_todays(tmp_path, checkpointer, early):
    save(checkpointer, 7)
    directory = tmp_path / "checkpoints" / "7"
    (directory / "data" / "metadata").write_text(json.dumps({"next_index": 7, **early}))
    write_checksums(directory)
    position = checkpointer.restore_latest(abstract(make_state(0))).position
    assert position == {"batches": {"next_index": 7}, "observers": early}


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_position_is_passed_over(tmp_path, checkpointer, checksums, capfd):
    position = {"buffer": np.arange(4000, dtype=np.float32)}
    for step in (1, 2):
        checkpointer.save(step, make_state(step), position=position, run_config={})
    checkpointer.close()
    directory = tmp_path / "checkpoints" / "2"
    if checksums:
        flip_a_byte(largest_file(directory / "arrays"))
    else:
        shutil.rmtree(directory / "arrays")
        (directory / "checksums.json").unlink()
    restored = Checkpointer(tmp_path / "checkpoints").restore_latest(abstract(make_state(0)))
    assert restored.step == 1 and "checkpoint step 2" in capfd.readouterr().err
    assert_same_position(restored.position, position)


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


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


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
