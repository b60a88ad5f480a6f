"""Blocks of two to four bits a value that are read and not written: k-quants, ggml's non-linear types, OCP's MXFP4.

Layouts are those of ggml (block_q2_K, block_q3_K, block_iq4_nl, block_iq4_xs, block_mxfp4); each function fills
float32 [N, size] from N blocks, in the reference's order of operations, so that results are equal bit for bit.
"""

from __future__ import annotations

import numpy as np

Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
IQ4_XS = np.dtype([("d", "<f2"), ("scales_high", "<u2"), ("scales_low", "u1", 4), ("qs", "u1", 128)])
MXFP4 = np.dtype([("e", "u1"), ("qs", "u1", 16)])

_QUARTERS = np.array([0, 2, 4, 6], np.uint8)
# The sixteen values that four bits stand for: ggml's kvalues_iq4nl, and twice those of a float of 1, 2 and 1 bits.
_NON_LINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_FLOAT4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
# Half of 2 ** (e - 127), down to the two smallest, which are subnormal in float32.
_HALF_POWERS = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def decode_q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Sixteen sub-blocks of two bits, each with a scale and a minimum of four bits."""
    scales = blocks["scales"]
    d = _scale(blocks, "d") * (scales & np.uint8(15)).astype(np.float32)
    m = _scale(blocks, "dmin") * (scales >> np.uint8(4)).astype(np.float32)
    values = out.reshape(-1, 16, 16)
    np.multiply(_two_bits(blocks).reshape(-1, 16, 16), d[..., None], out=values, dtype=np.float32)
    values -= m[..., None]


def decode_q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Sixteen sub-blocks of three bits, the third in `hmask` and set where nothing is taken off; scales of six bits."""
    low, high = blocks["scales"][:, :8], blocks["scales"][:, 8:]
    low = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=1)
    high = (high[:, None, :] >> _QUARTERS[:, None] & np.uint8(3)).reshape(-1, 16)
    scales = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    third = (blocks["hmask"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)).reshape(-1, 256)
    q = (_two_bits(blocks) | third << np.uint8(2)).view(np.int8) - np.int8(4)
    d = _scale(blocks, "d") * scales.astype(np.float32)
    np.multiply(q.reshape(-1, 16, 16), d[..., None], out=out.reshape(-1, 16, 16), dtype=np.float32)


def decode_iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    """32 values of four bits, which index a table."""
    np.multiply(_NON_LINEAR[_nibbles(blocks["qs"], 16)], _scale(blocks, "d"), out=out)


def decode_iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    """Eight sub-blocks of IQ4_NL's values with scales of six bits."""
    low = _nibbles(blocks["scales_low"][..., None], 1)
    high = (blocks["scales_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)).astype(np.uint8)
    scales = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    d = _scale(blocks, "d") * scales.astype(np.float32)
    values = _NON_LINEAR[_nibbles(blocks["qs"], 16)].reshape(-1, 8, 32)
    np.multiply(values, d[..., None], out=out.reshape(-1, 8, 32))


def decode_mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    """32 floats of four bits under one power of two (OCP Microscaling Formats 1.0); as in ggml, 255 is one too."""
    np.multiply(_FLOAT4[_nibbles(blocks["qs"], 16)], _HALF_POWERS[blocks["e"]][:, None], out=out)


def _scale(blocks: np.ndarray, field: str) -> np.ndarray:
    return blocks[field].astype(np.float32)[:, None]


def _two_bits(blocks: np.ndarray) -> np.ndarray:
    """uint8 [N, 256]: each 32 bytes hold four runs of 32 values, the first in their lowest bits."""
    qs = blocks["qs"].reshape(-1, 2, 1, 32)
    return (qs >> _QUARTERS[:, None] & np.uint8(3)).reshape(-1, 256)


def _nibbles(qs: np.ndarray, run: int) -> np.ndarray:
    """uint8 [N, 2 x bytes]: each `run` bytes hold the values of their lower halves, then those of their upper ones."""
    qs = qs.reshape(len(qs), -1, 1, run)
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=2).reshape(len(qs), -1)
