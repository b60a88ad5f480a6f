"""GGML's tensor types: blocks of small integers with shared scales, to float32 and back.

Types and layouts are those of ggml (block_q4_0 ... block_q6_K; `low_bits.py` has those of few bits). Every operation is
done in float32 in the reference's order, so that results are equal to it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slmjax.formats.gguf import low_bits

_PIECE = 1 << 17  # values handled at a time: the temporaries of a piece stay in the processor's cache


@dataclass(frozen=True)
class BlockType:
    """One tensor type: `dtype` is one block of `size` values.

    `decode` fills float32 [N, size] from N blocks; `encode` gives the N blocks of float32 [N, size], None where this
    module cannot write the type.
    """

    name: str
    number: int  # in the file
    size: int
    dtype: np.dtype
    decode: Callable[[np.ndarray, np.ndarray], None]
    encode: Callable[[np.ndarray], np.ndarray] | None = None


def nbytes(kind: BlockType, count: int) -> int:
    """Bytes of `count` values, a multiple of the block's size."""
    return count // kind.size * kind.dtype.itemsize


def dequantize(data: np.ndarray, kind: BlockType) -> np.ndarray:
    """float32 [count] of the raw bytes (uint8 [n]) of a tensor; a view of them for F32 (on a little-endian machine)."""
    blocks = np.frombuffer(data, kind.dtype)
    if kind.name == "F32":
        return blocks.astype(np.float32, copy=False)
    out = np.empty((len(blocks), kind.size), np.float32)
    step = _PIECE // kind.size
    with np.errstate(invalid="ignore"):  # a NaN is no arithmetic mistake of ours
        for start in range(0, len(blocks), step):
            kind.decode(blocks[start : start + step], out[start : start + step])
    return out.reshape(-1)


def quantize(x: np.ndarray, kind: BlockType) -> np.ndarray:
    """The raw bytes, uint8 [n], of float values whose rows are a multiple of the block's size."""
    assert kind.encode is not None
    blocks = np.empty(x.size // kind.size, kind.dtype)
    flat = np.ascontiguousarray(x).reshape(-1, kind.size)
    step = _PIECE // kind.size
    for start in range(0, len(flat), step):
        blocks[start : start + step] = kind.encode(flat[start : start + step].astype(np.float32, copy=False))
    return blocks.view(np.uint8)


def _decode_float(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:, 0] = blocks


def _encode_float16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x[:, 0].astype("<f2")


def _decode_bfloat16(blocks: np.ndarray, out: np.ndarray) -> None:
    np.left_shift(blocks, np.uint32(16), out=out.view(np.uint32)[:, 0], dtype=np.uint32)


def _encode_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even; a NaN stays a (quiet) NaN."""
    bits = x[:, 0].view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(x[:, 0]), bits >> 16 | 64, rounded).astype("<u2")


def _nibbles(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and second half of 32 values, each a uint8 [N, 16]."""
    return blocks["qs"] & np.uint8(15), blocks["qs"] >> np.uint8(4)


def _fifth_bits(blocks: np.ndarray) -> np.ndarray:
    """The bits of `qh`, moved to where they stand in a value of five bits: uint8 [N, 32]."""
    return np.unpackbits(blocks["qh"], axis=1, bitorder="little") << np.uint8(4)


def _scale(blocks: np.ndarray, field: str) -> np.ndarray:
    return blocks[field].astype(np.float32)[:, None]


def _decode_halves(halves: tuple[np.ndarray, np.ndarray], blocks: np.ndarray, out: np.ndarray) -> None:
    """d q + m, or d (q) where the type has no minimum."""
    d = _scale(blocks, "d")
    for half, q in zip((out[:, :16], out[:, 16:]), halves, strict=True):
        np.multiply(q, d, out=half, dtype=np.float32)
    if "m" in (blocks.dtype.names or ()):
        out += _scale(blocks, "m")


def _decode_q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    low, high = _nibbles(blocks)
    _decode_halves((low.view(np.int8) - np.int8(8), high.view(np.int8) - np.int8(8)), blocks, out)


def _decode_q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    _decode_halves(_nibbles(blocks), blocks, out)


def _decode_q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    (low, high), fifth = _nibbles(blocks), _fifth_bits(blocks)
    halves = ((low | fifth[:, :16]).view(np.int8) - np.int8(16), (high | fifth[:, 16:]).view(np.int8) - np.int8(16))
    _decode_halves(halves, blocks, out)


def _decode_q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    (low, high), fifth = _nibbles(blocks), _fifth_bits(blocks)
    _decode_halves((low | fifth[:, :16], high | fifth[:, 16:]), blocks, out)


def _decode_q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks["qs"], _scale(blocks, "d"), out=out, dtype=np.float32)


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of the eight sub-blocks, float32 [N, 8, 1].

    Twelve bytes hold sixteen numbers of six bits: the first four of each kind lie in bytes 0-3 and 4-7; of the others,
    bytes 8-11 hold the lower four bits, and the upper two bits of bytes 0-7 the rest.
    """
    scales = blocks["scales"]
    a, b, c = scales[:, :4], scales[:, 4:8], scales[:, 8:]
    d = np.concatenate([a & 63, (c & 15) | (a >> 2 & 48)], axis=1).astype(np.float32)
    m = np.concatenate([b & 63, (c >> 4) | (b >> 2 & 48)], axis=1).astype(np.float32)
    return (_scale(blocks, "d") * d)[..., None], (_scale(blocks, "dmin") * m)[..., None]


def _k_nibbles(blocks: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 32]: each 32 bytes hold two sub-blocks, in their lower and upper halves."""
    qs = blocks["qs"].reshape(-1, 4, 1, 32)
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=2).reshape(-1, 8, 32)


def _decode_k(q: np.ndarray, blocks: np.ndarray, out: np.ndarray) -> None:
    d, m = _k_scales(blocks)
    values = out.reshape(-1, 8, 32)
    np.multiply(q, d, out=values, dtype=np.float32)
    values -= m


def _decode_q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    _decode_k(_k_nibbles(blocks), blocks, out)


def _decode_q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    fifth = blocks["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    _decode_k(_k_nibbles(blocks) | fifth << np.uint8(4), blocks, out)


def _decode_q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    ql, qh = blocks["ql"].reshape(-1, 2, 1, 64), blocks["qh"].reshape(-1, 2, 1, 32)
    low = np.concatenate([ql & np.uint8(15), ql >> np.uint8(4)], axis=2).reshape(-1, 256)
    high = (qh >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)).reshape(-1, 256)
    q = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    d = _scale(blocks, "d") * blocks["scales"].astype(np.float32)
    np.multiply(q.reshape(-1, 16, 16), d[..., None], out=out.reshape(-1, 16, 16), dtype=np.float32)


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _small_integers(x: np.ndarray, levels: int) -> np.ndarray:
    """Truncated and limited to [0, levels), uint8."""
    with np.errstate(invalid="ignore"):
        return np.minimum(np.trunc(x).astype(np.uint8), np.uint8(levels - 1))


def _pack(x: np.ndarray, kind: np.dtype, levels: int) -> np.ndarray:
    """Blocks of 32 values in four or five bits, with a minimum where the type has one."""
    blocks = np.empty(len(x), kind)
    names = kind.names or ()
    with np.errstate(over="ignore", invalid="ignore"):
        if "m" in names:
            minimum = x.min(axis=1, keepdims=True)
            d = (x.max(axis=1, keepdims=True) - minimum) / np.float32(levels - 1)
            q = _small_integers((x - minimum) * _inverse(d) + np.float32(0.5), levels)
            blocks["m"] = minimum[:, 0]
        else:
            largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
            d = largest / np.float32(-levels // 2)
            q = _small_integers(x * _inverse(d) + np.float32(levels // 2 + 0.5), levels)
        blocks["d"] = d[:, 0]
    if "qh" in names:
        blocks["qh"] = np.packbits(q >> np.uint8(4), axis=1, bitorder="little")
    blocks["qs"] = (q[:, :16] & np.uint8(15)) | q[:, 16:] << np.uint8(4)
    return blocks


def _encode_q8_0(x: np.ndarray) -> np.ndarray:
    """Rounded half away from zero."""
    blocks = np.empty(len(x), Q8_0)
    with np.errstate(over="ignore", invalid="ignore"):
        d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        scaled = x * _inverse(d)
        size = np.abs(scaled)
        whole = np.floor(size)
        blocks["qs"] = np.copysign(whole + (size - whole >= 0.5), scaled).astype(np.int8)
        blocks["d"] = d[:, 0]
    return blocks


Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

BLOCK_TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("F32", 0, 1, np.dtype("<f4"), _decode_float, lambda x: x[:, 0]),
        BlockType("F16", 1, 1, np.dtype("<f2"), _decode_float, _encode_float16),
        BlockType("Q4_0", 2, 32, Q4_0, _decode_q4_0, lambda x: _pack(x, Q4_0, 16)),
        BlockType("Q4_1", 3, 32, Q4_1, _decode_q4_1, lambda x: _pack(x, Q4_1, 16)),
        BlockType("Q5_0", 6, 32, Q5_0, _decode_q5_0, lambda x: _pack(x, Q5_0, 32)),
        BlockType("Q5_1", 7, 32, Q5_1, _decode_q5_1, lambda x: _pack(x, Q5_1, 32)),
        BlockType("Q8_0", 8, 32, Q8_0, _decode_q8_0, _encode_q8_0),
        BlockType("Q2_K", 10, 256, low_bits.Q2_K, low_bits.decode_q2_k),
        BlockType("Q3_K", 11, 256, low_bits.Q3_K, low_bits.decode_q3_k),
        BlockType("Q4_K", 12, 256, Q4_K, _decode_q4_k),
        BlockType("Q5_K", 13, 256, Q5_K, _decode_q5_k),
        BlockType("Q6_K", 14, 256, Q6_K, _decode_q6_k),
        BlockType("IQ4_NL", 20, 32, low_bits.IQ4_NL, low_bits.decode_iq4_nl),
        BlockType("IQ4_XS", 23, 256, low_bits.IQ4_XS, low_bits.decode_iq4_xs),
        BlockType("BF16", 30, 1, np.dtype("<u2"), _decode_bfloat16, _encode_bfloat16),
        BlockType("MXFP4", 39, 32, low_bits.MXFP4, low_bits.decode_mxfp4),
    )
}
