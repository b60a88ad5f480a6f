"""Writes a GGUF file of version 3, tensor by tensor, whole or not at all."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from slmjax.errors import UserError
from slmjax.files import place_file
from slmjax.formats.gguf.blocks import BlockType, nbytes, quantize
from slmjax.formats.gguf.file import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING
from slmjax.formats.tensors import PlannedTensor

_TYPES = {dtype: number for number, dtype in SCALARS.items()}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    plans: list[PlannedTensor[BlockType]],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Write a file; `tensors` gives the planned ones in the planned order, one in memory at a time.

    metadata: bool, int (uint32), float (float32), str, a list of str, or a numpy array of a type that GGUF has.

    Raises:
        UserError: something else lies at `path`, the disk is full, or a value is too large for its type.
    """
    if path.exists() and not (path.is_file() and _is_gguf(path)):
        raise UserError(f"{path} is there and is not a GGUF file: choose another name.")
    with place_file(path) as partial, open(partial, "xb") as file:
        _write(file, metadata, plans, tensors)
        file.flush()


def _write(
    file: BinaryIO, metadata: Mapping[str, Any], plans: list[PlannedTensor[BlockType]], tensors: Iterable
) -> None:
    file.write(MAGIC + struct.pack("<IQQ", 3, len(plans), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _value(value))
    offset = 0
    for plan in plans:
        dims = plan.shape[::-1]
        file.write(_string(plan.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, plan.kind.number, offset))
        offset += -(-nbytes(plan.kind, math.prod(plan.shape)) // ALIGNMENT) * ALIGNMENT
    _pad(file)
    for plan, (name, tensor) in zip(plans, tensors, strict=True):
        assert (name, tensor.shape) == (plan.name, plan.shape), (name, tensor.shape, plan)
        data = quantize(tensor, plan.kind)
        if plan.kind.name != "F32":
            _refuse_overflow(name, tensor, data, plan.kind)
        file.write(data.data)
        _pad(file)


def _refuse_overflow(name: str, tensor: np.ndarray, data: np.ndarray, kind: BlockType) -> None:
    """float16 ends at 65504, and every block's scale is one."""
    blocks = data.view(kind.dtype)
    scales = [blocks[field] for field in ("d", "m") if field in (kind.dtype.names or ())] or [blocks]
    if kind.name == "BF16":
        scales = [blocks.view(ml_dtypes.bfloat16)]
    if all(np.isfinite(s).all() for s in scales):
        return
    if np.isfinite(tensor.astype(np.float32)).all():
        wider = "float32" if kind.name == "BF16" else "bfloat16 or float32"
        raise UserError(f"The weights of {name} are too large for {kind.name.lower()}: choose dtype {wider}.")


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """The value's type and its bytes."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _TYPES[value.dtype], len(value)) + value.tobytes()
    dtype = np.dtype("?") if isinstance(value, bool) else np.dtype("<u4" if isinstance(value, int) else "<f4")
    return struct.pack("<I", _TYPES[dtype]) + np.array(value, dtype).tobytes()


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == MAGIC
