"""Safetensors: equal to the library's reading and writing; files that lie are refused before anything is allocated."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from slmjax.errors import UserError
from slmjax.formats.safetensors_files import INDEX, SafetensorsDirectory, read_header, write_safetensors
from slmjax.formats.tensors import PlannedTensor

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "c": np.array(3.0, np.float32),
    "d": np.zeros((0, 4), np.float16),
}


def write(directory, tensors=TENSORS, most=10**9):
    directory.mkdir(exist_ok=True)
    plan = [PlannedTensor(name, array.shape, array.dtype) for name, array in tensors.items()]
    write_safetensors(directory, plan, tensors.items(), max_shard_bytes=most)
    return directory


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_equal_tensors(found, expected=TENSORS):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_what_is_written_the_library_reads(tmp_path):
    write(tmp_path / "m")
    assert_equal_tensors(load_file(tmp_path / "m" / "model.safetensors"))


def test_what_the_library_writes_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = SafetensorsDirectory(tmp_path)
    assert_equal_tensors({name: file.read(name) for name in file.shapes()})


@pytest.mark.parametrize("most", [1, 24, 34, 10**9])
def test_shards_hold_everything_once_and_no_more_than_they_may(tmp_path, most):
    directory = write(tmp_path / "m", most=most)
    file = SafetensorsDirectory(directory)
    assert_equal_tensors({name: file.read(name) for name in file.shapes()})
    assert (directory / INDEX).exists() == (len(file.paths) > 1)
    for path in file.paths:
        sizes = [array.nbytes for name, array in TENSORS.items() if file.tensors[name].path == path]
        assert len([size for size in sizes if size]) == 1 or sum(sizes) <= most


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"", b"", "header"),
        (b"[" * 100_000, b"", "header"),
        (b"{\xff}", b"", "header"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "header"),
        ({"a": 3}, b"", "no description"),
        ({"a": entry(dtype="F8_E9")}, b"", "dtype"),
        ({"a": entry(dtype=["F32"])}, b"", "dtype"),
        ({"a": entry(shape=[-2])}, b"\0" * 8, "cannot be read"),
        ({"a": entry(shape=[True, 2])}, b"\0" * 8, "cannot be read"),
        ({"a": entry(shape=[1] * 99)}, b"\0" * 8, "cannot be read"),
        ({"a": entry(shape=[2.0])}, b"\0" * 8, "cannot be read"),
        ({"a": entry(shape=[2**40, 2**40])}, b"\0" * 8, "does not take"),
        ({"a": entry(shape=[2**61, 8], offsets=[0, 0])}, b"", "does not take"),
        ({"a": entry(offsets=[8, 0])}, b"\0" * 8, "does not take"),
        ({"a": entry(offsets=[0])}, b"\0" * 8, "cannot be read"),
        ({"a": entry(offsets=[0, "8"])}, b"\0" * 8, "cannot be read"),
        ({"a": entry(offsets=[2**60, 2**60 + 8])}, b"\0" * 8, "gap"),
        ({"a": entry()}, b"\0" * 7, "take 8 bytes and it holds 7"),
        ({"a": entry()}, b"\0" * 9, "take 8 bytes and it holds 9"),
        ({"a": entry(), "b": entry()}, b"\0" * 8, "overlap"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12, "overlap"),
        ({"a": entry(), "b": entry(offsets=[12, 20])}, b"\0" * 20, "gap"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, data, said):
    with pytest.raises(UserError, match=said):
        read_header(raw(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", b"\x01" * 40])
def test_lengths_that_lie_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="header"):
        read_header(path)


def test_tensors_that_are_no_floats_are_known_but_not_read(tmp_path):
    save_file({"mask": np.ones(3, bool), "ids": np.arange(3)}, tmp_path / "model.safetensors")
    file = SafetensorsDirectory(tmp_path)
    assert file.shapes() == {"mask": (3,), "ids": (3,)}
    with pytest.raises(UserError, match="BOOL: only floats"):
        file.read("mask")


@pytest.mark.parametrize("cut", range(0, 150, 7))
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, cut):
    path = write(tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError):
        SafetensorsDirectory(tmp_path / "m")


def reindex(directory, change):
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("../secret.safetensors", "plain name"),
        ("/etc/passwd", "not a safetensors file"),
        ("/etc/x.safetensors", "plain name"),
        ("..", "not a safetensors file"),
        ("missing.safetensors", "is missing"),
        ("link.safetensors", "leads out"),
        ("", "not a safetensors file"),
        (None, "not a safetensors file"),
        (["model.safetensors"], "not a safetensors file"),
    ],
)
def test_an_index_leads_nowhere_else(tmp_path, where, said):
    directory = write(tmp_path / "m", most=1)
    save_file({"a": TENSORS["a"]}, tmp_path / "secret.safetensors")
    (directory / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    reindex(directory, lambda index: index["weight_map"].update(a=where))
    with pytest.raises(UserError, match=said):
        SafetensorsDirectory(directory)


def test_the_single_file_is_no_link_outward(tmp_path):
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UserError, match="leads out"):
        SafetensorsDirectory(tmp_path / "m")


def test_the_links_of_the_hubs_cache_are_inside(tmp_path):
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(TENSORS, blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert set(SafetensorsDirectory(snapshot).shapes()) == set(TENSORS)


def test_a_tensor_in_two_shards_is_named(tmp_path):
    directory = write(tmp_path / "m", most=24)
    shards = SafetensorsDirectory(directory).paths
    save_file({**load_file(shards[1]), "a": TENSORS["a"]}, shards[1])
    with pytest.raises(UserError, match="tensor a is both in"):
        SafetensorsDirectory(directory)


def test_an_index_that_is_wrong_about_a_tensor_is_refused(tmp_path):
    directory = write(tmp_path / "m", most=24)
    reindex(directory, lambda index: index["weight_map"].update(z="model-00001-of-00002.safetensors"))
    with pytest.raises(UserError, match=r"z is in .* where it is not"):
        SafetensorsDirectory(directory)


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match=r"pickle.*save_pretrained"):
        SafetensorsDirectory(tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        SafetensorsDirectory(tmp_path.parent)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=2) | JSON,
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2) | JSON,
    }
)


def reads_wholly_or_refuses(path):
    """The property of the fuzzers: either a UserError, or every tensor lies inside the file and can be read."""
    try:
        tensors = read_header(path)
    except UserError:
        return
    size = path.stat().st_size
    file = object.__new__(SafetensorsDirectory)
    file.tensors = tensors
    for name, tensor in tensors.items():
        assert 0 <= tensor.start <= size
        if tensor.kind in ("F32", "F16", "BF16"):
            assert file.read(name).nbytes <= size


@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3), data=st.binary(max_size=24))
def test_any_header_is_read_wholly_or_refused(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed-header.safetensors"
    reads_wholly_or_refuses(raw(path, header, data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_read_wholly_or_refused(tmp_path_factory, data):
    base = tmp_path_factory.getbasetemp()
    path = base / "fuzzed-bytes.safetensors"
    content = bytearray((write(base / "sound") / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    reads_wholly_or_refuses(path)
