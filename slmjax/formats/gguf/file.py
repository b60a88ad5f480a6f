"""The GGUF container, versions 2 and 3: its header parsed from a mapped file, its tensors read one at a time.

A file is hostile until parsed: every count, length and offset is held against the bytes that are there before anything
is made of it. A model that is split over files is opened by any of them. Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError, shown
from slmjax.formats.gguf import split
from slmjax.formats.gguf.blocks import BLOCK_TYPES, BlockType, dequantize, nbytes
from slmjax.formats.tensors import StoredTensor

MAGIC = b"GGUF"
ALIGNMENT = 32  # where general.alignment says nothing
STRING, ARRAY = 8, 9  # numbers of the types of values that are no plain scalar
SCALARS: dict[int, np.dtype] = {  # number of a value's type -> how its bytes read
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# Far above what any model needs, far below what would hurt.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_NAME = 1 << 10  # bytes of a key or of a tensor's name
_MAX_STRING = 1 << 24
_MAX_STRINGS = 1 << 23  # of all arrays together: each costs a Python object
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 16

# Types of ggml that are known and not read here, to name them in the error.
_OTHER_TYPES = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16"}
_OTHER_TYPES |= {26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4"}
_BY_NUMBER = {kind.number: kind for kind in BLOCK_TYPES.values()}


@dataclass(frozen=True)
class GgufFile:
    """A parsed header over mapped files. A `TensorFile` for `weight_map`: tensors are read as float32."""

    path: Path
    metadata: Mapping[str, Any]  # bool, int, float, str, list[str], or a numpy array
    tensors: Mapping[str, StoredTensor[BlockType]]
    maps: Mapping[Path, mmap.mmap]  # the whole file, or every part of a split one, in order

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the header alone."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, a view of the file where it is that already."""
        info = self.tensors[name]
        map = self.maps[info.path]
        values = dequantize(np.frombuffer(map, np.uint8, info.num_bytes, info.start), info.kind)
        if info.kind.name != "F32" and hasattr(map, "madvise"):  # a copy: the file's pages may go
            first = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
            size = info.start + info.num_bytes - first
            if size > 0:
                map.madvise(mmap.MADV_DONTNEED, first, size)
        return values.reshape(info.shape)


def open_gguf(path: Path) -> GgufFile:
    """Parse a file's header, and with one part of a split model those of all; no tensor is read.

    Raises:
        UserError: there is no such file, or it is not GGUF, is truncated, or lies about itself; or a part is missing.
    """
    opened = _open_one(path)
    paths = split.part_paths(path, opened.metadata)
    if paths == [path]:
        return opened
    parts = [opened if part == path else _open_one(part) for part in paths]
    tensors = split.joined([(part.path, part.metadata, part.tensors) for part in parts])
    return GgufFile(path, parts[0].metadata, tensors, {part.path: part.maps[part.path] for part in parts})


def _open_one(path: Path) -> GgufFile:
    if not path.is_file():
        raise UserError(f"There is no GGUF file at {path}.")
    if path.stat().st_size < 24:
        raise UserError(f"{path} is not a GGUF file: it ends before its header does.")
    return _Header(path).parse()


class _Header:
    """A cursor over the file's bytes that takes only what is there."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = memoryview(self.map)
        self.data = np.frombuffer(self.map, np.uint8)
        self.at = 0
        self.strings_left = _MAX_STRINGS

    def parse(self) -> GgufFile:
        if bytes(self.bytes[:4]) != MAGIC:
            raise UserError(f"{self.path} is not a GGUF file: it does not begin with GGUF.")
        self.at = 4
        version = self.u32()
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                raise UserError(f"{self.path} is a big-endian GGUF file: convert it to little-endian first.")
            raise self.error(f"is of GGUF version {version}; versions 2 and 3 are read")
        num_tensors, num_keys = self.u64(), self.u64()
        if num_keys > _MAX_KEYS or num_tensors > _MAX_TENSORS:
            raise self.error(f"claims {num_keys} metadata keys and {num_tensors} tensors, more than any model has")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string("a metadata key", _MAX_NAME)
            if key in metadata:
                raise self.error(f"has the metadata key {key!r} twice")
            metadata[key] = self.value(key, self.u32())
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.error(
                f"has general.alignment {shown(alignment)}, which is not a power of two up to {_MAX_ALIGNMENT}"
            )
        offsets: dict[str, tuple[tuple[int, ...], BlockType, int]] = {}
        for _ in range(num_tensors):
            name = self.string("the name of a tensor", _MAX_NAME)
            if name in offsets:
                raise self.error(f"has the tensor {name!r} twice")
            offsets[name] = self.tensor(name, alignment)
        start = -(-self.at // alignment) * alignment
        return GgufFile(self.path, metadata, self.placed(offsets, start), {self.path: self.map})

    def tensor(self, name: str, alignment: int) -> tuple[tuple[int, ...], BlockType, int]:
        """Shape, type and offset of the next tensor."""
        num_dims = self.u32()
        if not 1 <= num_dims <= _MAX_DIMS:
            raise self.error(f"gives the tensor {name!r} {num_dims} dimensions; 1 to {_MAX_DIMS} are possible")
        shape = tuple(self.u64() for _ in range(num_dims))[::-1]
        number, offset = self.u32(), self.u64()
        kind = _BY_NUMBER.get(number)
        if kind is None:
            what = _OTHER_TYPES.get(number, f"unknown type {number}")
            raise self.error(f"holds the tensor {name!r} as {what}; {', '.join(BLOCK_TYPES)} can be read")
        if math.prod(shape) == 0 or shape[-1] % kind.size:
            raise self.error(f"gives the tensor {name!r} the shape {list(shape)}, whose rows no {kind.name} can hold")
        if offset % alignment:
            raise self.error(f"puts the tensor {name!r} at offset {offset}, which is not a multiple of {alignment}")
        return shape, kind, offset

    def placed(self, offsets: Mapping[str, Any], start: int) -> dict[str, StoredTensor[BlockType]]:
        """Tensors at their places in the file; UserError where one lies beyond its end or in another."""
        tensors, free = {}, start
        for name in sorted(offsets, key=lambda name: offsets[name][2]):
            shape, kind, offset = offsets[name]
            info = StoredTensor(self.path, shape, kind, start + offset, nbytes(kind, math.prod(shape)))
            if info.start + info.num_bytes > len(self.data):
                raise self.error(
                    f"is truncated or its header is inconsistent: the tensor {name!r} would end beyond the file's end"
                )
            if info.start < free:
                raise self.error(f"lets the tensor {name!r} overlap another")
            tensors[name], free = info, info.start + info.num_bytes
        return {name: tensors[name] for name in offsets}

    def value(self, key: str, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalars(SCALARS[kind], 1)[0].item()
        if kind == STRING:
            return self.string(key, _MAX_STRING)
        if kind != ARRAY:
            raise self.error(f"gives {key!r} a value of unknown type {kind}")
        kind, count = self.u32(), self.u64()
        if kind in SCALARS:
            return self.scalars(SCALARS[kind], count)
        if kind != STRING:
            what = "arrays" if kind == ARRAY else f"the unknown type {kind}"
            raise self.error(f"gives {key!r} an array of {what}")
        return self.strings(key, count)

    def scalars(self, dtype: np.dtype, count: int) -> np.ndarray:
        """A view of the next numbers. Booleans other than 0 and 1 count as true."""
        raw = self.take(count * dtype.itemsize)
        return raw != 0 if dtype.kind == "b" else raw.view(dtype)

    def strings(self, key: str, count: int) -> list[str]:
        self.strings_left -= count
        if count > len(self.data) - self.at or self.strings_left < 0:
            raise self.error(f"gives {key!r} {count} strings, more than it can hold")
        return [self.string(key, _MAX_STRING) for _ in range(count)]

    def string(self, what: str, limit: int) -> str:
        length = self.u64()
        if length > limit or length > len(self.data) - self.at:
            raise self.error(f"claims a string of {length} bytes in {what!r}, more than there is or may be")
        try:
            text = str(self.bytes[self.at : self.at + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"holds a string in {what!r} that is not UTF-8") from error
        self.at += length
        return text

    def u32(self) -> int:
        return int(self.unpack(_U32))

    def u64(self) -> int:
        return int(self.unpack(_U64))

    def unpack(self, form: struct.Struct) -> int:
        if self.at + form.size > len(self.data):
            raise self.error("is truncated: it ends inside its header")
        (value,) = form.unpack_from(self.bytes, self.at)
        self.at += form.size
        return value

    def take(self, size: int) -> np.ndarray:
        if size > len(self.data) - self.at:
            raise self.error("is truncated or its header is inconsistent: it ends inside its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.path} {problem}.")
