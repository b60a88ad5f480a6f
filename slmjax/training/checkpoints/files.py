"""The files of one step's checkpoint: are they what was written, do they fit the state that wants them?

Orbax and TensorStore notice a damaged index but not a flipped byte in an array (zstd frames without checksums: of 12
flips in a data file 10 came back as wrong numbers, without an error). So a checkpoint carries the CRC-32 of its files.
"""

import concurrent.futures
import errno
import json
import logging
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError

FILE_NAME = "checksums.json"


class DamagedError(Exception):
    """A checkpoint cannot be read back as it was written."""


def read_state(path: Any, abstract: Any, *, partial: bool) -> Any:
    """The arrays of the step directory `path` (an epath), with the shardings of `abstract`.

    partial: `abstract` is a part of the tree; only that is read, and cast to its dtypes. Raises DamagedError, or
    UserError when an intact checkpoint does not fit.
    """
    ocp = orbax()
    local = "://" not in str(path)
    verified = local and verify_checksums(Path(path))
    if local and not verified:
        warn(f"checkpoint {path} has no checksums; damage to its arrays could go unnoticed.")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            stored = reader.metadata(path / "state").item_metadata.tree
        except Exception as error:
            raise DamagedError(f"its description cannot be read: {_first_line(error)}") from error
        require_same(path, stored, abstract, partial=partial)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
        try:
            return reader.restore(path / "state", args=args)
        except Exception as error:
            if verified or isinstance(error, MemoryError):
                raise  # the bytes are as they were written: this is something else, such as too little memory
            raise DamagedError(f"its arrays cannot be read: {_first_line(error)}") from error


def read_json(path: Any, item: str) -> dict[str, Any]:
    """The JSON item of the step directory `path`. Raises DamagedError."""
    ocp = orbax()
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(path / item)
    except Exception as error:
        raise DamagedError(f"its {item} cannot be read: {_first_line(error)}") from error


def write_checksums(directory: Path) -> None:
    """Write size and CRC-32 of every file in the sub-directories of `directory`, atomically, to checksums.json."""
    names = sorted(str(path.relative_to(directory)) for path in directory.glob("*/**/*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        sums = dict(zip(names, threads.map(lambda name: _checksum(directory / name), names), strict=True))
    scratch = directory / (FILE_NAME + ".tmp")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(sums, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, directory / FILE_NAME)


def verify_checksums(directory: Path) -> bool:
    """True: the files are as written. False: there are no checksums to tell. Raises DamagedError, on every process."""
    error = ""
    verdict = 0  # 0: no checksums, 1: verified, 2: damaged
    if jax.process_index() == 0 and (directory / FILE_NAME).exists():
        error = _find_damage(directory)
        verdict = 2 if error else 1
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
    if verdict == 2:
        raise DamagedError(error or "see the warning of process 0")
    return verdict == 1


def require_same(directory: Path, stored: Any, abstract: Any, *, partial: bool) -> None:
    """Raise UserError with what differs, unless the stored tree has the names, shapes and dtypes of `abstract`.

    partial: `abstract` may leave out names, and its dtypes are what to cast to.
    """
    have, want = _describe(stored), _describe(abstract)
    differences = [f"{name} is missing" for name in want if name not in have]
    if not partial:
        differences += [f"{name} is not expected" for name in have if name not in want]
    for name in (name for name in want if name in have):
        (have_shape, have_dtype), (want_shape, want_dtype) = have[name], want[name]
        if have_shape != want_shape:
            differences.append(f"{name} has shape {list(have_shape)}, not {list(want_shape)}")
        elif have_dtype != want_dtype and not partial:
            differences.append(f"{name} is {have_dtype}, not {want_dtype}")
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"The checkpoint {directory} is of another model or optimizer than this config's: "
            f"{'; '.join(differences[:3])}{more}; use the config that it was saved with, or another --workdir."
        )


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk or quota is at the root of an error; TensorStore wraps it in a ValueError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _find_damage(directory: Path) -> str:
    """What is wrong with the first bad file, or nothing."""
    try:
        sums = {str(name): (int(size), int(crc)) for name, (size, crc) in json.loads(_read(directory)).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{FILE_NAME} cannot be read"
    for name, (size, _) in sums.items():  # sizes first: they cost nothing
        if not (directory / name).is_file():
            return f"{name} is missing"
        if (directory / name).stat().st_size != size:
            return f"{name} has {(directory / name).stat().st_size} bytes of {size}"
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            for name, found in zip(sums, threads.map(lambda name: _checksum(directory / name), sums), strict=True):
                if tuple(found) != sums[name]:
                    return f"{name} is not what was written: its checksum differs"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return ""


def _read(directory: Path) -> str:
    return (directory / FILE_NAME).read_text(encoding="utf-8")


def _checksum(path: Path) -> list[int]:
    """[size in bytes, CRC-32]; zlib lets go of the interpreter lock, so threads help."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, crc]


def _describe(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Each leaf's path, shape and dtype as it is stored: a typed random key as its uint32 words."""

    def of(leaf: Any) -> tuple[tuple[int, ...], str]:
        if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(getattr(leaf, "shape", None) or ()), str(np.dtype(getattr(leaf, "dtype", None) or type(leaf)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): of(leaf) for path, leaf in leaves}


def orbax() -> Any:
    """orbax.checkpoint, imported late because it takes a while, and with its talk on stderr left out."""
    import orbax.checkpoint

    absl_logger = logging.getLogger("absl")
    if _not_from_orbax not in absl_logger.filters:
        absl_logger.addFilter(_not_from_orbax)
        logging.getLogger("asyncio").addFilter(_no_full_disk)
    return orbax.checkpoint


def warn(message: str) -> None:
    """One line on stderr, from process 0 alone."""
    if jax.process_index() == 0:
        print(f"warning: {message}", file=sys.stderr, flush=True)


def barrier(name: str) -> None:
    """Wait here for every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _no_full_disk(record: logging.LogRecord) -> bool:
    """Of the writes that a full disk stopped, one has been told; asyncio reports the others with a traceback."""
    return not (record.exc_info and is_full_disk(record.exc_info[1]))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
