"""The container: what is written is read, and every lie of a file is refused in one sentence."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.formats.gguf.blocks import BLOCK_TYPES
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.model import load_gguf, save_gguf
from slmjax.formats.gguf.writer import write_gguf
from slmjax.formats.tensors import PlannedTensor
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny import initialized

F32 = BLOCK_TYPES["F32"]


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name=b"t", dims=(4,), kind=0, offset=0, num_dims=None) -> bytes:
    count = len(dims) if num_dims is None else num_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def build(keys=(), tensors=(), *, version=3, num_tensors=None, num_keys=None, magic=b"GGUF", data=bytes(256)) -> bytes:
    num_tensors = len(tensors) if num_tensors is None else num_tensors
    num_keys = len(keys) if num_keys is None else num_keys
    header = magic + struct.pack("<IQQ", version, num_tensors, num_keys) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


HUGE = 2**63
STRING, ARRAY = 8, 9
LIES = {  # what the file does -> (its bytes, a word of the error)
    "empty": (b"", "ends before"),
    "another format": (build(magic=b"GGML"), "does not begin"),
    "version 1": (build(version=1), "version 1"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "2^63 tensors": (build(num_tensors=HUGE), "more than any model"),
    "2^63 keys": (build(num_keys=HUGE), "more than any model"),
    "more keys than there are": (build(num_keys=60000, data=b""), "truncated|UTF-8|string|twice"),
    "a key of 2^63 bytes": (build([struct.pack("<Q", HUGE)]), "string of"),
    "a string of 2^63 bytes": (build([key(b"a", STRING, struct.pack("<Q", HUGE))]), "string of"),
    "a string beyond the end": (build([key(b"a", STRING, struct.pack("<Q", 5000))]), "string of"),
    "a string that is no text": (build([key(b"a", STRING, string(b"\xff\xfe"))]), "UTF-8"),
    "an unknown type of value": (build([key(b"a", 13, b"")]), "unknown type"),
    "an array of arrays": (build([key(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
    "an array of an unknown type": (build([key(b"a", ARRAY, struct.pack("<IQ", 99, 1))]), "unknown type"),
    "2^63 numbers": (build([key(b"a", ARRAY, struct.pack("<IQ", 4, HUGE))]), "truncated"),
    "2^62 numbers of 8 bytes": (build([key(b"a", ARRAY, struct.pack("<IQ", 10, 2**62))]), "truncated"),
    "2^63 strings": (build([key(b"a", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "more than it can hold"),
    "a key twice": (build([key(b"a", 4, b"\0\0\0\0")] * 2), "twice"),
    "alignment 0": (build([key(b"general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
    "alignment 3": (build([key(b"general.alignment", 4, struct.pack("<I", 3))]), "alignment"),
    "alignment 2^31": (build([key(b"general.alignment", 4, struct.pack("<I", 2**31))]), "alignment"),
    "alignment is text": (build([key(b"general.alignment", STRING, string(b"x"))]), "alignment"),
    "no dimensions": (build([], [tensor(dims=())]), "0 dimensions"),
    "five dimensions": (build([], [tensor(dims=(1,) * 5)]), "5 dimensions"),
    "2^32 - 1 dimensions": (build([], [tensor(dims=(), num_dims=2**32 - 1)]), "dimensions"),
    "a dimension of 0": (build([], [tensor(dims=(4, 0))]), "shape"),
    "dimensions that overflow": (build([], [tensor(dims=(2**33, 2**31))]), "beyond the file"),
    "dimensions that overflow to 0": (build([], [tensor(dims=(2**32, 2**32))]), "beyond the file"),
    "an unknown tensor type": (build([], [tensor(kind=77)]), "unknown type 77"),
    "a tensor type that is not read": (build([], [tensor(kind=16)]), "IQ2_XXS"),
    "a row that is no whole block": (build([], [tensor(dims=(33,), kind=8)]), "Q8_0"),
    "an offset beyond the end": (build([], [tensor(offset=1 << 20)]), "beyond the file"),
    "an offset of nearly 2^64": (build([], [tensor(offset=2**64 - 32)]), "beyond the file"),
    "an odd offset": (build([], [tensor(offset=4)]), "multiple of 32"),
    "a tensor twice": (build([], [tensor(), tensor(offset=32)]), "twice"),
    "tensors that overlap": (build([], [tensor(dims=(16,)), tensor(b"u", offset=32)]), "overlap"),
    "data that is cut off": (build([], [tensor(dims=(64,))], data=bytes(255)), "beyond the file"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_in_one_sentence(lie, tmp_path):
    data, word = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError, match=word) as caught:
        open_gguf(path)
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert allocated < 1 << 20
    assert str(caught.value).count("\n") == 0 and str(path) in str(caught.value)


def test_a_header_cut_anywhere_is_refused(tmp_path):
    whole = build([key(b"a.b", ARRAY, struct.pack("<IQ", STRING, 2) + string(b"x") + string(b"yz"))], [tensor()])
    path = tmp_path / "cut.gguf"
    for size in range(len(whole) - 256 + 15):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_gguf(path)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(UserError, match="no GGUF file"):
            open_gguf(path)


VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=5),
)


@settings(max_examples=50, deadline=None)
@given(metadata=st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda k: k != "general.alignment"), VALUES))
def test_metadata_survives(metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, metadata, [], [])
    assert dict(open_gguf(path).metadata) == metadata


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "<u8", "<i8", "<f8"])
def test_arrays_of_every_type_survive(dtype, tmp_path):
    values = np.array([0, 1, 1, 0], dtype)
    write_gguf(tmp_path / "a.gguf", {"a": values}, [], [])
    read = open_gguf(tmp_path / "a.gguf").metadata["a"]
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_version_2_is_read(tmp_path):
    data = np.arange(4, dtype=np.float32)
    (tmp_path / "two.gguf").write_bytes(build([], [tensor(dims=(2, 2))], version=2, data=data.tobytes()))
    np.testing.assert_array_equal(open_gguf(tmp_path / "two.gguf").read("t"), data.reshape(2, 2))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, {"a": 1}, [], [])

    def fails():
        yield "x", np.zeros(4, np.float32)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_gguf(path, {"a": 2}, [PlannedTensor("x", (4,), F32), PlannedTensor("y", (4,), F32)], fails())
    assert open_gguf(path).metadata == {"a": 1}
    assert os.listdir(tmp_path) == ["model.gguf"]


CONFIG = ModelConfig(vocab_size=272, num_layers=2, embed_dim=32, num_heads=2, ffn_dim=32, context_length=16)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A whole model in a file."""
    params = initialized(CONFIG)
    tokenizer = train_bpe(["the cat sat on the mat"] * 3, 260, progress=False)
    return save_gguf(
        LanguageModel(config=CONFIG, params=params, tokenizer=tokenizer),
        tmp_path_factory.mktemp("small") / "m.gguf",
        dtype="q8_0",
    ).read_bytes()


def test_a_model_says_what_is_missing_and_what_is_too_much(small, tmp_path):
    path = tmp_path / "renamed.gguf"
    path.write_bytes(small.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(UserError, match=r"ffn_up\.weight is missing; blk\.1\.ffn_xx\.weight is not expected"):
        load_gguf(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"general.architecture", b"general.architectura", "does not say"),
        (string(b"llama"), string(b"lamma"), "did you mean 'llama'"),
        (string(b"llama"), string(b"mamba"), "not supported"),
        (b"llama.block_count", b"llama.block_c0unt", "block_count is missing"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "no tokenizer"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(small, old, new, message, tmp_path):
    assert old in small
    path = tmp_path / "broken.gguf"
    path.write_bytes(small.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_gguf(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_count", 2**31),
        ("block_count", 0),
        ("block_count", 500),
        ("embedding_length", 2**31),
        ("context_length", 0),
    ]
    + [("embedding_length", 64), ("feed_forward_length", 2**32 - 1), ("attention.head_count", 0)]
    + [("attention.head_count", 3), ("attention.head_count_kv", 7), ("rope.dimension_count", 1)]
    + [("attention.key_length", 2**27), ("vocab_size", 2**31)],
)
def test_sizes_that_lie_are_refused_before_anything_is_made_of_them(small, name, value, tmp_path):
    where = small.index(b"llama." + name.encode()) + len("llama." + name) + 4
    path = tmp_path / "lie.gguf"
    path.write_bytes(small[:where] + struct.pack("<I", value) + small[where + 4 :])
    if name == "vocab_size":  # the embedding says it
        assert load_gguf(path).config == CONFIG
        return
    with pytest.raises(UserError, match="lie\\.gguf"):
        load_gguf(path)


@pytest.mark.filterwarnings("ignore:.*NaN or infinity")
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(small, data, tmp_path_factory):
    """Bytes of the header overwritten, removed or doubled: a model, or one sentence; never anything else."""
    raw = bytearray(small)
    header = small.index(b"output_norm.weight") + 100
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header))
        size = data.draw(st.sampled_from([1, 1, 2, 4, 8]))
        junk = data.draw(st.one_of(st.binary(min_size=size, max_size=size), st.sampled_from([b"\xff" * 8, bytes(8)])))
        raw[at : at + data.draw(st.sampled_from([0, size, size, size]))] = junk
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(raw)
    try:
        load_gguf(path)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("worst", [3e38, np.inf, np.nan])
def test_weights_that_are_no_numbers_are_warned_of_once_and_large_ones_are_not(worst, tmp_path, recwarn):
    params = initialized(CONFIG)
    params["final_norm"]["scale"] = np.full(CONFIG.embed_dim, worst, np.float32)
    path = save_gguf(LanguageModel(config=CONFIG, params=params), tmp_path / "large.gguf", dtype="float32")
    assert load_gguf(path).tokenizer is None
    said = [str(w.message) for w in recwarn if "NaN" in str(w.message)]
    assert said == [] if np.isfinite(worst) else said == ["The weights final_norm/scale hold NaN or infinity."]


@pytest.mark.parametrize("alignment", [8, 32, 128])
def test_files_of_the_gguf_package_are_read(alignment, tmp_path):
    """Every type that the package can quantize to, K-quants from raw blocks, and any alignment."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.words", ["a", "é"])
    writer.add_float32("a.number", 1.5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 512)).astype(np.float32)
    expected = {}
    for name, kind in BLOCK_TYPES.items():
        number = gguf.GGMLQuantizationType[name]
        if kind.encode:
            raw = gguf.quants.quantize(x, number)
        else:
            count = x.size // kind.size
            blocks = rng.integers(0, 256, count * kind.dtype.itemsize, np.uint8).view(kind.dtype)
            for field in {"d", "dmin"} & set(kind.dtype.names or ()):
                blocks[field] = rng.normal(size=count)
            raw = blocks.view(np.uint8).reshape(3, -1)
        writer.add_tensor(name, raw, raw_dtype=number)
        expected[name] = gguf.quants.dequantize(raw, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(tmp_path / "theirs.gguf")
    assert list(file.metadata["some.numbers"]) == [1, 2, 3] and file.metadata["some.words"] == ["a", "é"]
    assert file.metadata["a.number"] == 1.5 and file.metadata["general.architecture"] == "llama"
    for name, values in expected.items():
        np.testing.assert_array_equal(file.read(name), values)
