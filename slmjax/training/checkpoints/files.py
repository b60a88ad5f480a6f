"""The files of one step's checkpoint: read back onto the devices, if they fit the state that wants them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError, first_few, one_line
from slmjax.models.parameters import flatten, path_string
from slmjax.training.checkpoints.checksums import DamagedError, verify_checksums
from slmjax.training.checkpoints.orbax import orbax
from slmjax.training.processes import warn

STATE, DATA, ARRAYS, CONFIG, EVALUATION = "state", "data", "arrays", "config", "evaluation"  # a step's items


def read_state(path: Path, abstract: Any, *, partial: bool) -> Any:
    """The arrays of the step directory `path`, with the shardings of `abstract`.

    partial: `abstract` is a part of the tree; only that is read, and cast to its dtypes. Leaves are found by their
    names, those of earlier versions included (`find_stored`). Raises DamagedError, or UserError when an intact
    checkpoint does not fit.
    """
    ocp = orbax()
    verified = verify_checksums(path)
    if not verified:
        warn(f"checkpoint {path} has no checksums; damage to its arrays could go unnoticed.")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            stored = reader.metadata(path / STATE).item_metadata.tree
        except Exception as error:
            raise DamagedError(f"its description cannot be read: {one_line(error)}") from error
        names = find_stored(abstract, stored)
        require_same(path, stored, abstract, names, partial=partial)
        wanted = dict(zip(names.values(), jax.tree.leaves(abstract), strict=True))
        item = jax.tree_util.tree_map_with_path(lambda key, _: wanted.get(path_string(key), ocp.PLACEHOLDER), stored)
        try:
            read = reader.restore(path / STATE, args=_restore(item))
        except Exception as error:
            if verified or isinstance(error, MemoryError):
                raise  # the bytes are as they were written: this is something else, such as too little memory
            raise DamagedError(f"its arrays cannot be read: {one_line(error)}") from error
    leaves = flatten(read)
    return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in names.values()])


def read_arrays(path: Path, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The item of arrays of the step directory `path`: uint8 [n] for each name. Raises DamagedError."""
    if not sizes:
        return {}
    ocp = orbax()
    args = ocp.args.PyTreeRestore(
        item={name: np.zeros(size, np.uint8) for name, size in sizes.items()},
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in sizes},
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(path / ARRAYS, args=args)
    except Exception as error:
        raise DamagedError(f"its position cannot be read: {one_line(error)}") from error


def read_json(path: Path, item: str) -> dict[str, Any]:
    """The JSON item of the step directory `path`. Raises DamagedError."""
    ocp = orbax()
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(path / item)
    except Exception as error:
        raise DamagedError(f"its {item} cannot be read: {one_line(error)}") from error


def find_stored(abstract: Any, stored: Any) -> dict[str, str]:
    """Name of each leaf of `abstract`, in order -> its name in the stored tree; the same name where there is none.

    Where everything is trained, what is trained (and the optimizer's moments, the average, the Fisher information) is
    {"params": the network's tree}. Checkpoints of earlier versions have the network's tree in its place: their names
    lack that level.
    """
    have, names = flatten(stored), {}
    for name in flatten(abstract):
        parts = name.split("/")
        names[name] = name
        if name not in have and "params" in parts:
            last = len(parts) - 1 - parts[::-1].index("params")
            earlier = "/".join(parts[:last] + parts[last + 1 :])
            names[name] = earlier if earlier in have else name
    return names


def require_same(directory: Path, stored: Any, abstract: Any, names: Mapping[str, str], *, partial: bool) -> None:
    """Raise UserError with what differs, unless the stored tree has the names, shapes and dtypes of `abstract`.

    names: of `find_stored`. partial: `abstract` may leave out names, and its dtypes are what to cast to.
    """
    have, want = _describe(stored), _describe(abstract)
    differences = [f"{name} is missing" for name in want if names[name] not in have]
    if not partial:
        found = set(names.values())
        differences += [f"{name} is not expected" for name in have if name not in found]
    for name in (name for name in want if names[name] in have):
        (have_shape, have_dtype), (want_shape, want_dtype) = have[names[name]], want[name]
        if have_shape != want_shape:
            differences.append(f"{name} has shape {list(have_shape)}, not {list(want_shape)}")
        elif have_dtype != want_dtype and not partial:
            differences.append(f"{name} is {have_dtype}, not {want_dtype}")
    if differences:
        raise UserError(
            f"The checkpoint {directory} is of another model or optimizer than this config's: "
            f"{first_few(differences, separator='; ')}; use the config that it was saved with, or another --workdir."
        )


def _restore(item: Any) -> Any:
    """Orbax's arguments for reading those leaves of the stored tree that are not placeholders."""
    ocp = orbax()

    def one(leaf: Any) -> Any:
        return ocp.RestoreArgs() if leaf is ocp.PLACEHOLDER else ocp.checkpoint_utils.construct_restore_args(leaf)

    return ocp.args.PyTreeRestore(item=item, restore_args=jax.tree.map(one, item))


def _describe(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Each leaf's path, shape and dtype as it is stored: a typed random key as its uint32 words."""

    def of(leaf: Any) -> tuple[tuple[int, ...], str]:
        if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(getattr(leaf, "shape", None) or ()), str(np.dtype(getattr(leaf, "dtype", None) or type(leaf)))

    return {name: of(leaf) for name, leaf in flatten(tree).items()}
