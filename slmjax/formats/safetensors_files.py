"""A model directory's tensors in safetensors files, one or many, read with suspicion and written as a stream.

The format: 8 bytes, little-endian, the length of a JSON header; the header, name -> dtype, shape and where the bytes
lie in the rest; the bytes, without gaps.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from slmjax.errors import UserError
from slmjax.formats.tensors import PlannedTensor, StoredTensor
from slmjax.untrusted import inside, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in FLOATS.items()}
# Bytes an element of what a file may hold beside floats (masks, tables), which is never read.
_OTHERS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4}
_OTHERS |= {"F64": 8, "I64": 8, "U64": 8, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
_MAX_HEADER = 1 << 24  # bytes; a thousand layers need a hundredth of it
_MAX_RANK = 8
_LFS = b"version https://git-lfs"
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
# Weights that are no safetensors: the ends of their names, what they are, and what makes them readable.
_SAVE_AGAIN = "convert it once with transformers' from_pretrained and save_pretrained, which writes safetensors"
_STRANGE = {
    ".bin": ("a pickle, which could run code when it is read", _SAVE_AGAIN),
    ".pt": ("a pickle, which could run code when it is read", _SAVE_AGAIN),
    ".pth": ("a pickle, which could run code when it is read", _SAVE_AGAIN),
    ".ckpt": ("a pickle, which could run code when it is read", _SAVE_AGAIN),
    ".h5": ("a file of TensorFlow", _SAVE_AGAIN),
    ".msgpack": ("a file of Flax", _SAVE_AGAIN),
    ".onnx": ("a compiled network", "give the model that it was exported from"),
    ".incomplete": ("a download that was cut off", "fetch it again"),
    ".part": ("a download that was cut off", "fetch it again"),
}


class SafetensorsDirectory:
    """The tensors of a model directory. A tensor is mapped when it is read and given back when its views are gone.

    name: the one file that is meant, where it is not a model's (an adapter's).

    Raises:
        UserError: no safetensors here, or a file that contradicts itself, its index or another file.
    """

    def __init__(self, directory: Path, name: str | None = None):
        index = _index(directory) if name is None else None
        names = [name] if name is not None else sorted({*(index or {}).values()})
        self.paths = [inside(directory, each) for each in names] if names else _files(directory)
        self.tensors: dict[str, StoredTensor[str]] = {}
        for path in self.paths:
            for name, tensor in read_header(path).items():
                if name in self.tensors:
                    raise UserError(f"The tensor {name} is both in {self.tensors[name].path.name} and in {path.name}.")
                self.tensors[name] = tensor
        for name, file in (index or {}).items():
            if name not in self.tensors or self.tensors[name].path.name != file:
                raise UserError(f"{directory / INDEX} says that {name[:100]} is in {file}, where it is not.")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor and its shape."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only view of its file; UserError when it holds no floats."""
        tensor = self.tensors[name]
        if tensor.kind not in FLOATS:
            raise UserError(f"The tensor {name} in {tensor.path} is of dtype {tensor.kind}: only floats can be loaded.")
        dtype, count = FLOATS[tensor.kind], math.prod(tensor.shape)
        if count == 0:
            return np.empty(tensor.shape, dtype)
        start = tensor.start - tensor.start % mmap.ALLOCATIONGRANULARITY
        with open(tensor.path, "rb") as file:
            length = tensor.start - start + tensor.num_bytes
            mapped = mmap.mmap(file.fileno(), length, offset=start, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype, count, tensor.start - start).reshape(tensor.shape)

    def dtypes(self) -> list[str]:
        """The dtypes that occur, by numpy's names where they are floats."""
        return sorted({_dtype_name(tensor.kind) for tensor in self.tensors.values()})

    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)


def read_header(path: Path) -> dict[str, StoredTensor[str]]:
    """The tensors of one file; every number of the header is checked against the file's size before it is used."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file.seek(0) == 0 and file.read(len(_LFS)) == _LFS:
            raise UserError(f"{path} is a pointer of Git LFS and not the file itself: fetch it (git lfs pull).")
        file.seek(8)
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(
                f"{path} is not a complete safetensors file: its header would have {length:,} bytes of {size:,}."
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file: its header is not readable ({error}).") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file: its header is not a JSON object.")
    header.pop("__metadata__", None)
    start, available = 8 + length, size - 8 - length
    spans: list[tuple[int, int]] = []
    tensors = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(entry, f"{path}: the tensor {name[:100]!r}")
        tensors[name] = StoredTensor(path, shape, dtype, start + begin, end - begin)
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise UserError(f"{path} is damaged: its tensors {'overlap' if begin < reached else 'leave a gap'}.")
        reached = end
    if reached != available:
        raise UserError(f"{path} is damaged: its tensors take {reached:,} bytes and it holds {available:,}.")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _entry(entry: Any, what: str) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of a header's entry, in agreement with each other."""
    if not isinstance(entry, dict):
        raise UserError(f"{what} has no description.")
    dtype, shape = entry.get("dtype"), _counts(entry.get("shape"), _MAX_RANK)
    offsets = _counts(entry.get("data_offsets"), 2)
    if not isinstance(dtype, str) or not (dtype in FLOATS or dtype in _OTHERS):
        raise UserError(f"{what} is of dtype {str(dtype)[:40]!r}, which is not known here.")
    if shape is None or offsets is None or len(offsets) != 2:
        raise UserError(f"{what} has a shape or data_offsets that cannot be read.")
    begin, end = offsets
    size = FLOATS[dtype].itemsize if dtype in FLOATS else _OTHERS[dtype]
    if end - begin != math.prod(shape) * size:
        raise UserError(f"{what} of shape {shape} and dtype {dtype} does not take bytes {begin} to {end}.")
    return dtype, tuple(shape), begin, end


def _counts(values: Any, most: int) -> list[int] | None:
    """A list of at most `most` whole numbers, None where it is anything else."""
    if not isinstance(values, list) or len(values) > most:
        return None
    return values if all(type(value) is int and 0 <= value < 1 << 62 for value in values) else None


def _dtype_name(dtype: str) -> str:
    return FLOATS[dtype].name if dtype in FLOATS else dtype


def _index(directory: Path) -> dict[str, str] | None:
    """Tensor -> file, where the weights are sharded; the single file is the stronger word."""
    if (directory / SINGLE).exists() or not (directory / INDEX).exists():
        return None
    weight_map = read_json(inside(directory, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{directory / INDEX} has no weight_map.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            where = str(file)[:100]
            raise UserError(f"{directory / INDEX} puts {name[:100]} in {where!r}, which is not a safetensors file.")
    return weight_map


def _files(directory: Path) -> list[Path]:
    """The one file of a directory's weights."""
    if (directory / SINGLE).exists():
        return [inside(directory, SINGLE)]
    found = sorted(path.name for path in directory.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if len(found) == 1:
        return [inside(directory, found[0])]
    if found:
        return [inside(directory, name) for name in _shards_of(directory, found)]
    for end, (what, remedy) in _STRANGE.items():
        if names := sorted(path.name for path in directory.glob(f"*{end}")):
            raise UserError(f"{directory} holds its weights only in {names[0]}, {what}: {remedy}.")
    if (directory / "latest").is_file() or any(directory.glob("global_step*")) or any(directory.glob("*.distcp")):
        raise UserError(
            f"{directory} holds the parts of a training with DeepSpeed or FSDP, not a model: join them with its tool "
            "(zero_to_fp32.py, accelerate merge-weights) and give what that writes."
        )
    raise UserError(f"{directory} holds no weights: there is neither {SINGLE} nor {INDEX}.")


def _shards_of(directory: Path, found: Sequence[str]) -> list[str]:
    """The shards of one model, which say themselves how many they are, where no index says it."""
    parts = [_SHARD.fullmatch(name) for name in found]
    sets = {(part[1], int(part[3])) for part in parts if part is not None}
    if None in parts or len(sets) != 1:
        raise UserError(f"{directory} holds {', '.join(found[:3])} ... but no {INDEX} that says which are its weights.")
    (stem, count), numbers = sets.pop(), {int(part[2]) for part in parts if part is not None}
    missing = [number for number in range(1, min(count, 10**4) + 1) if number not in numbers]
    if missing:
        name = f"{stem}-{missing[0]:05}-of-{count:05}.safetensors"
        raise UserError(f"{directory} is incomplete: it holds {len(found)} of {count} shards, and {name} is missing.")
    return list(found)


def write_safetensors(
    directory: Path,
    plan: Sequence[PlannedTensor[np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    max_shard_bytes: int,
    name: str = SINGLE,
) -> None:
    """Write the tensors as they come: one file, or shards with an index where they exceed `max_shard_bytes`.

    plan: every tensor in the order in which `tensors` gives them; of these one is in memory at a time. name: of the
    file where it is one.
    """
    shards = list(_shards(plan, max_shard_bytes))
    stream = iter(tensors)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        shard_name = name if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with open(directory / shard_name, "wb") as file:
            _write_header(file, shard)
            for planned in shard:
                given, array = next(stream)
                assert (given, array.shape, array.dtype) == (planned.name, planned.shape, planned.kind)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                weight_map[planned.name] = shard_name
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        total = sum(_num_bytes(planned) for planned in plan)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _num_bytes(planned: PlannedTensor[np.dtype]) -> int:
    return math.prod(planned.shape) * planned.kind.itemsize


def _shards(plan: Sequence[PlannedTensor[np.dtype]], most: int) -> Iterator[list[PlannedTensor[np.dtype]]]:
    shard: list[PlannedTensor[np.dtype]] = []
    for planned in plan:
        if shard and sum(_num_bytes(p) for p in shard) + _num_bytes(planned) > most:
            yield shard
            shard = []
        shard.append(planned)
    yield shard


def _write_header(file: BinaryIO, shard: Sequence[PlannedTensor[np.dtype]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for planned in shard:
        begin, end = end, end + _num_bytes(planned)
        dtype = _NAMES[planned.kind]
        header[planned.name] = {"dtype": dtype, "shape": list(planned.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the bytes of every tensor are aligned
    file.write(len(text).to_bytes(8, "little") + text)
