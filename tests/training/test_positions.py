"""Positions of batches and observers: any of them comes back from a checkpoint, bit for bit, or is not saved."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.checkpoints.checksums import write_checksums
from slmjax.training.checkpoints.positions import decode_position, encode_position
from tests.training.states import abstract, flip_a_byte, largest_file, make_state, save

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
