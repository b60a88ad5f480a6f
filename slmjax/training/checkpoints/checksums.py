"""Checksums of a checkpoint's files: are they what was written?

Orbax and TensorStore notice a damaged index but not a flipped byte in an array (zstd frames without checksums: of 12
flips in a data file 10 came back as wrong numbers, without an error). So a checkpoint carries the CRC-32 of its files.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import zlib
from pathlib import Path

import jax
import numpy as np

from slmjax.training.processes import is_primary

FILE_NAME = "checksums.json"


class DamagedError(Exception):
    """A checkpoint cannot be read back as it was written."""


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
    if is_primary() and (directory / FILE_NAME).exists():
        error = _find_damage(directory)
        verdict = 2 if error else 1
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
    if verdict == 2:
        raise DamagedError(error or "see the warning of process 0")
    return verdict == 1


def _find_damage(directory: Path) -> str:
    """What is wrong with the first bad file, or nothing."""
    try:
        content = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
        sums = {str(name): (int(size), int(crc)) for name, (size, crc) in content.items()}
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
                if found != sums[name]:
                    return f"{name} is not what was written: its checksum differs"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return ""


def _checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32; zlib lets go of the interpreter lock, so threads help."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc
