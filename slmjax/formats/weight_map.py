"""Between our parameter tree and somebody else's named tensors, both ways, a tensor at a time.

A family's map is a list of `Entry`: one tensor of the file, and the leaves of our tree that it holds. What the file
stacks or fuses is undone by views (transposes, slices), so that a memory-mapped file is read only where it is needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError, first_few
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import abstract_leaves, flatten, place_of, unflatten
from slmjax.sharding.rules import spec_for

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Leaf:
    """One array of ours before layers are stacked: its path ("segment_0/block_0/attention/q_proj/kernel") and the
    index of its layer in the stack, None for what belongs to no layer."""

    path: str
    repeat: int | None = None


@dataclass(frozen=True)
class Entry:
    """One tensor of a file and the leaves that are cut from it.

    `split` gives one array a leaf, in our shapes, as views of the tensor where that is possible; `join` is its inverse.
    """

    name: str
    leaves: tuple[Leaf, ...]
    split: Callable[[np.ndarray], Arrays]
    join: Callable[[Arrays], np.ndarray]


def layer_leaf(config: ModelConfig, layer: int, rest: str) -> Leaf:
    """The leaf of layer number `layer` that holds `rest` ("attention/q_proj/kernel")."""
    place = place_of(config, layer)
    return Leaf(f"{place.path}/{rest}", place.repeat)


def as_is(name: str, leaf: Leaf) -> Entry:
    """A tensor that is ours already: gains, biases, tables, kernels of [in, out] (GPT-2's Conv1D)."""
    return Entry(name, (leaf,), lambda x: [x], lambda xs: xs[0])


def transposed(name: str, leaf: Leaf) -> Entry:
    """A torch Linear's weight, [out, in]."""
    return Entry(name, (leaf,), lambda x: [x.T], lambda xs: xs[0].T)


def concatenated(name: str, leaves: Sequence[Leaf], sizes: Sequence[int], *, transpose: bool) -> Entry:
    """Outputs of several products one after the other along the tensor's first axis (last with transpose=False)."""
    axis = 0 if transpose else -1
    cuts = np.cumsum(sizes)[:-1].tolist()

    def split(x: np.ndarray) -> Arrays:
        if x.shape[axis] != sum(sizes):
            raise UserError(f"The tensor {name} has shape {list(x.shape)}: its axis {axis} must be {sum(sizes)}.")
        parts = np.split(x, cuts, axis=axis)
        return [part.T for part in parts] if transpose else list(parts)

    def join(xs: Arrays) -> np.ndarray:
        return np.concatenate([x.T for x in xs] if transpose else xs, axis=axis)

    return Entry(name, tuple(leaves), split, join)


def own_entries(config: ModelConfig) -> list[Entry]:
    """Our own arrays under our own names, layers stacked: a file that no other library knows the names of."""
    return [as_is(path, Leaf(path)) for path in abstract_leaves(config)]


def shardings_of(config: ModelConfig, mesh: jax.sharding.Mesh | None) -> dict[str, jax.sharding.Sharding] | None:
    """The sharding of each of a network's arrays on a mesh, by the rules; None without a mesh."""
    if mesh is None:
        return None
    leaves = abstract_leaves(config).items()
    return {p: jax.sharding.NamedSharding(mesh, spec_for(p, leaf.shape, mesh)) for p, leaf in leaves}


def joined_shapes(config: ModelConfig, entries: Sequence[Entry]) -> list[tuple[int, ...]]:
    """The shape of each entry's tensor, found by joining arrays that take no memory."""
    leaves = abstract_leaves(config)

    def zeros(leaf: Leaf) -> np.ndarray:
        return np.broadcast_to(np.uint8(0), _one_layer(leaves[leaf.path].shape, leaf))

    return [entry.join([zeros(leaf) for leaf in entry.leaves]).shape for entry in entries]


def joined_dtypes(params: Any, entries: Sequence[Entry]) -> list[np.dtype]:
    """The dtype of each entry's tensor: that of its arrays, or of several the one that holds them all."""
    dtypes = {path: leaf.dtype for path, leaf in flatten(params).items()}
    return [np.dtype(reduce(jnp.promote_types, (dtypes[leaf.path] for leaf in entry.leaves))) for entry in entries]


class TensorFile(Protocol):
    """Named tensors that are read one at a time."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor and its shape, from the header alone."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, float; a view of the mapped file where its bytes allow."""
        ...


def check_tensors(config: ModelConfig, entries: Sequence[Entry], file: TensorFile, where: str) -> None:
    """UserError naming what is missing, unexpected or misshapen; nothing is read and nothing allocated."""
    shapes = file.shapes()
    names = {entry.name for entry in entries}
    wrong = [f"{name} is missing" for name in sorted(names - set(shapes))]
    wrong += [f"{name} is not expected" for name in sorted(set(shapes) - names)]
    _refuse(wrong, where)
    wanted = abstract_leaves(config)  # after the names: to trace layers that are not there could take long
    for entry in entries:
        shape = shapes[entry.name]
        try:
            parts = entry.split(np.broadcast_to(np.float32(0), shape))
            fits = all(
                part.shape == _one_layer(wanted[leaf.path].shape, leaf)
                for part, leaf in zip(parts, entry.leaves, strict=True)
            )
        except (ValueError, IndexError, UserError):
            fits = False
        if not fits:
            ours = " and ".join(str(list(_one_layer(wanted[leaf.path].shape, leaf))) for leaf in entry.leaves)
            wrong.append(f"{entry.name} has shape {list(shape)}, which does not give our {ours}")
    _refuse(wrong, where)


def _refuse(wrong: list[str], where: str) -> None:
    if wrong:
        raise UserError(f"{where} does not fit its config: {first_few(wrong, separator='; ')}.")


def read_params(
    config: ModelConfig,
    entries: Sequence[Entry],
    file: TensorFile,
    *,
    dtype: Any = None,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, Any]:
    """Our nested parameters from a checked file, leaf by leaf, each device getting (and reading) only its own part.

    dtype: of the result; None keeps the file's. shardings: of each leaf's path; None puts all on the first device.
    A warning names arrays that hold NaN or infinity.
    """
    sources: dict[str, dict[int | None, tuple[Entry, int]]] = {}
    for entry in entries:
        for part, leaf in enumerate(entry.leaves):
            sources.setdefault(leaf.path, {})[leaf.repeat] = (entry, part)
    target = None if dtype is None else jnp.dtype(dtype)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    flat = {}
    for path, array in abstract_leaves(config).items():
        sharding = here if shardings is None else shardings[path]
        read = _part_reader(path, array.shape, sources[path], file, target)
        flat[path] = jax.make_array_from_callback(array.shape, sharding, read)
    return unflatten(flat)


def _part_reader(
    path: str,
    shape: tuple[int, ...],
    layers: dict[int | None, tuple[Entry, int]],
    file: TensorFile,
    dtype: np.dtype | None,
) -> Callable[[Any], np.ndarray]:
    """From an index of a whole leaf to that part of it, read when it is asked for.

    Devices that hold the same part share one reading of it. What is returned is a copy: the file's pages go back.
    """
    known: dict[Any, np.ndarray] = {}
    stacked = None not in layers  # the file has a tensor for each layer

    def view(layer: int | None, rest: tuple[slice, ...]) -> np.ndarray:
        entry, part = layers[layer]
        return entry.split(file.read(entry.name))[part][rest]

    def stack(numbers: range, rest: tuple[slice, ...]) -> np.ndarray:
        first = view(numbers[0], rest)
        out = _aligned((len(numbers), *first.shape), dtype or first.dtype)
        for n, layer in enumerate(numbers):
            _fill(out[n : n + 1], view(layer, rest), path)
        return out

    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(one.indices(size) for one, size in zip(index, shape, strict=True))
        if bounds not in known and stacked:
            known[bounds] = stack(range(*bounds[0]), index[1:])
            warn_of_nan(known[bounds], path)
        elif bounds not in known:
            x = view(None, index)
            known[bounds] = _aligned(x.shape, dtype or x.dtype)
            _fill(known[bounds], x, path)
            warn_of_nan(known[bounds], path)
        return known[bounds]

    return read


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array in another dtype. UserError where that makes a finite number infinite: float16 ends at 65504."""
    if array.dtype == dtype:
        return array
    made = np.empty(array.shape, dtype)
    _fill(made, array, name)
    return made


def cast_params(params: Any, dtype: str) -> Any:
    """Parameters in another dtype, where they are; codes of quantized weights stay. UserError as `cast`."""
    flat = {}
    for path, leaf in flatten(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == dtype:
            flat[path] = leaf
            continue
        flat[path] = leaf.astype(dtype)
        if _is_narrower(flat[path].dtype, leaf.dtype) and bool((jnp.isinf(flat[path]) & jnp.isfinite(leaf)).any()):
            raise _too_large(path, flat[path].dtype)
    return unflatten(flat)


def _is_narrower(dtype: Any, than: Any) -> bool:
    return bool(dtype != than and jnp.finfo(dtype).max < jnp.finfo(than).max)


def _too_large(name: str, dtype: np.dtype) -> UserError:
    wider = "bfloat16 or float32" if dtype == np.float16 else "float32"
    return UserError(f"The weights of {name} are too large for {dtype.name}: choose dtype {wider}.")


def _fill(out: np.ndarray, array: np.ndarray, name: str) -> None:
    """Copy the array's numbers into `out`, whose dtype may be another; UserError as `cast`."""
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = array
        if not _is_narrower(out.dtype, array.dtype):
            return
        # A sum is not finite where a value is not: only then is each number looked at.
        if np.isfinite(out.sum(dtype=np.float32)) or not (np.isinf(out) & np.isfinite(array)).any():
            return
    raise _too_large(name, out.dtype)


def warn_of_nan(part: np.ndarray, path: str) -> None:
    """Warn where the weights at `path` hold NaN or infinity."""
    # A sum is not finite where a value is not, and needs no second array; a large finite sum may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total = part.sum(dtype=np.float32)
    if not np.isfinite(total) and not all(np.isfinite(row).all() for row in part):
        warnings.warn(f"The weights {path} hold NaN or infinity.", stacklevel=2)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, whose memory jax takes over on a CPU instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def write_tensors(params: Any, entries: Sequence[Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """The file's tensors from our parameters, one at a time, in the dtype that they have."""
    flat = {path: _on_host(leaf) for path, leaf in flatten(params).items()}

    def get(leaf: Leaf) -> np.ndarray:
        array = flat[leaf.path]
        return np.asarray(array if leaf.repeat is None else array[leaf.repeat])

    for entry in entries:
        yield entry.name, np.ascontiguousarray(entry.join([get(leaf) for leaf in entry.leaves]))


def _on_host(leaf: Any) -> Any:
    """A CPU's own array as numpy's view of it; others stay where they are, to be fetched a layer at a time."""
    one_cpu = isinstance(leaf, jax.Array) and [d.platform for d in leaf.devices()] == ["cpu"]
    return np.asarray(leaf) if one_cpu else leaf


def _one_layer(shape: tuple[int, ...], leaf: Leaf) -> tuple[int, ...]:
    return shape if leaf.repeat is None else shape[1:]
