"""Writes a GGUF file of version 3, tensor by tensor, whole or not at all."""

from __future__ import annotations

import errno
import os
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.gguf.blocks import BlockType, nbytes, quantize
from slmjax.formats.gguf.file import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING

_TYPES = {dtype: number for number, dtype in SCALARS.items()}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that will be written: `shape` has the row last, as numpy writes it."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType

    @property
    def size(self) -> int:
        """In bytes."""
        return nbytes(self.kind, int(np.prod(self.shape)))


def write_gguf(
    path: Path, metadata: Mapping[str, Any], plans: list[TensorPlan], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write a file; `tensors` gives the planned ones in the planned order, one in memory at a time.

    metadata: bool, int (uint32), float (float32), str, a list of str, or a numpy array of a type that GGUF has.

    Raises:
        UserError: something else lies at `path`, the disk is full, or a value is too large for its type.
    """
    if path.exists() and not (path.is_file() and _is_gguf(path)):
        raise UserError(f"{path} is there and is no GGUF file: choose another name.")
    partial = path.parent / f".{path.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            _write(file, metadata, plans, tensors)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full while writing {path}: free some space and try again.") from error
        raise UserError(f"{path} may not be written ({error.strerror}): choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)


def _write(file: BinaryIO, metadata: Mapping[str, Any], plans: list[TensorPlan], tensors: Iterable) -> None:
    file.write(MAGIC + struct.pack("<IQQ", 3, len(plans), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _value(value))
    offset = 0
    for plan in plans:
        dims = plan.shape[::-1]
        file.write(_string(plan.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, plan.kind.number, offset))
        offset += -(-plan.size // ALIGNMENT) * ALIGNMENT
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
    if kind.name == "BF16" or all(np.isfinite(s).all() for s in scales):
        return
    if np.isfinite(tensor.astype(np.float32)).all():
        raise UserError(f"the weights of {name} are too large for {kind.name.lower()}: choose dtype bf16 or f32.")


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
