"""Positions of batches and observers as a checkpoint holds them: a JSON item, and one of arrays where there are any.

A position is a nested dict with string keys. Its leaves are JSON values or arrays, NumPy's or jax's. The arrays are
stored as their bytes, because they must come back bit for bit whatever their dtype, byte order or size (Orbax takes no
empty arrays), and under numbers, because a key may contain any character.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.training.checkpoints.checksums import DamagedError

LAYOUT = 2  # 1: the JSON item is the position in the data itself, with that of early stopping as one of its keys
_EARLY_STOPPING = "early_stopping"


def encode_position(position: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(JSON item, {number: uint8 [n]}) of a position. Both are copies: the position may change at once.

    Raises:
        TypeError: a leaf is neither a JSON value nor an array, or a key is not a string.
    """
    described: list[dict[str, Any]] = []
    stored: dict[str, np.ndarray] = {}

    def without_arrays(node: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise TypeError(f"A position's key is {key!r} at {'/'.join(path)!r}: keys must be strings.")
            here = (*path, key)
            if isinstance(value, Mapping):
                values[key] = without_arrays(value, here)
            elif isinstance(value, np.ndarray | np.generic | jax.Array):
                array = _to_host(value)
                described.append({"path": here, "dtype": _dtype_name(array.dtype), "shape": array.shape})
                if array.nbytes:
                    stored[str(len(described) - 1)] = np.frombuffer(array.tobytes(), np.uint8)
            else:
                values[key] = value
        return values

    values = without_arrays(position, ())
    return json.loads(json.dumps({"layout": LAYOUT, "values": values, "arrays": described})), stored


def stored_sizes(item: Mapping[str, Any]) -> dict[str, int]:
    """{number: bytes} of the arrays that belong to a JSON item. Raises DamagedError."""
    try:
        sizes = [math.prod(a["shape"]) * np.dtype(a["dtype"]).itemsize for a in item.get("arrays", ())]
    except (KeyError, TypeError) as error:
        raise DamagedError("its position cannot be read") from error
    return {str(number): size for number, size in enumerate(sizes) if size}


def decode_position(item: dict[str, Any], stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The position of a JSON item and its arrays, as NumPy arrays. Raises DamagedError, or UserError if it is newer."""
    if "layout" not in item:
        return _from_first_layout(item)
    if item["layout"] != LAYOUT:
        raise UserError(f"The checkpoint's layout {item['layout']!r} is not known here: use a newer slmjax to read it.")
    try:
        position = item["values"]
        for number, array in enumerate(item["arrays"]):
            *parents, last = array["path"]
            node = position
            for key in parents:
                node = node[key]
            content = stored.get(str(number), np.zeros(0, np.uint8)).tobytes()
            flat = np.frombuffer(content, np.dtype(array["dtype"]))
            node[last] = flat.reshape(array["shape"]).copy()  # a view of bytes may not be written to
        return position
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError("its position cannot be read") from error


def _from_first_layout(item: Mapping[str, Any]) -> dict[str, Any]:
    """The position of a checkpoint that was written before positions were nested and could hold arrays."""
    batches = {key: value for key, value in item.items() if key != _EARLY_STOPPING}
    observers = {key: item[key] for key in (_EARLY_STOPPING,) if key in item}
    return {"batches": batches, "observers": observers}


def _to_host(array: Any) -> np.ndarray:
    """The whole array, in row-major order, also where its shards are on several processes."""
    if isinstance(array, jax.Array):
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
            raise TypeError("A position cannot hold a typed random key: give jax.random.key_data of it.")
        if not (array.is_fully_addressable or array.is_fully_replicated):
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _dtype_name(dtype: np.dtype) -> str:
    """What `np.dtype` makes the same dtype of; ml_dtypes' (bfloat16 ...) go by their names."""
    for name in (dtype.str, dtype.name):
        try:
            if np.dtype(name) == dtype and not dtype.hasobject:
                return name
        except TypeError:
            continue
    raise TypeError(f"A position cannot hold an array of dtype {dtype}.")
