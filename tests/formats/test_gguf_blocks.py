"""Every tensor type against the `gguf` package, bit for bit, and what a round trip may lose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.formats.gguf.blocks import BLOCK_TYPES, dequantize, nbytes, quantize

WRITABLE = [name for name, kind in BLOCK_TYPES.items() if kind.encode]
SMALL = settings(max_examples=25, deadline=None)


def random_blocks(name: str, seed: int, count: int) -> np.ndarray:
    """Blocks of random bits, but with finite scales."""
    kind = BLOCK_TYPES[name]
    raw = np.random.default_rng(seed).integers(0, 256, count * kind.dtype.itemsize, np.uint8)
    blocks = raw.view(kind.dtype)
    for field in {"d", "m", "dmin"} & set(kind.dtype.names or ()):
        blocks[field] = np.random.default_rng(seed + 1).normal(size=count)
    return raw


def weights(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 64)).astype(np.float32) * np.exp(rng.normal(size=(rows, 1)) * 3).astype(np.float32)
    x[rng.random(rows) < 0.1] = 0.0  # blocks without any scale
    x[:, 3] = np.round(x[:, 3])
    return x


@pytest.mark.parametrize("name", BLOCK_TYPES)
@SMALL
@given(seed=st.integers(0, 2**31), count=st.integers(1, 700))
def test_decoding_is_bit_equal_to_the_reference(name, seed, count):
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(name, seed, count)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(
        dequantize(raw, BLOCK_TYPES[name]).view(np.uint32), theirs.reshape(-1).view(np.uint32)
    )


@pytest.mark.parametrize("name", WRITABLE)
@SMALL
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 300))
def test_encoding_is_bit_equal_to_the_reference(name, seed, rows):
    gguf = pytest.importorskip("gguf")
    x = weights(seed, rows)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(quantize(x, BLOCK_TYPES[name]), theirs.view(np.uint8).reshape(-1))


def test_numbers_and_sizes_are_the_formats():
    gguf = pytest.importorskip("gguf")
    for name, kind in BLOCK_TYPES.items():
        assert kind.number == gguf.GGMLQuantizationType[name]
        assert (kind.size, kind.dtype.itemsize) == gguf.GGML_QUANT_SIZES[kind.number]
        assert nbytes(kind, 4 * kind.size) == 4 * kind.dtype.itemsize


# Half a step of the largest value of a block; q4_0 and q5_0 clip the end that the largest value does not name.
@pytest.mark.parametrize(("name", "steps"), [("Q8_0", 127), ("Q4_0", 7.5), ("Q4_1", 15), ("Q5_0", 15.5), ("Q5_1", 31)])
def test_a_round_trip_loses_at_most_a_step(name, steps):
    x = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    back = dequantize(quantize(x, BLOCK_TYPES[name]), BLOCK_TYPES[name]).reshape(x.shape)
    width = np.ptp(x, axis=1) if name.endswith("_1") else np.abs(x).max(axis=1)
    assert (np.abs(back - x).max(axis=1) <= width / steps + 2e-2 * width / steps).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floats_of_the_type_survive(name):
    x = dequantize(quantize(weights(3, 20), BLOCK_TYPES[name]), BLOCK_TYPES[name])
    np.testing.assert_array_equal(x, dequantize(quantize(x, BLOCK_TYPES[name]), BLOCK_TYPES[name]))


def test_nan_stays_nan():
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    for name in ("F32", "F16", "BF16"):
        back = dequantize(quantize(x, BLOCK_TYPES[name]), BLOCK_TYPES[name])
        np.testing.assert_array_equal(np.isnan(back), [True, False, False, False])
