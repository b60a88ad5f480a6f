"""Local files and directories: there whole or not at all, also when several processes make the same one."""

import errno
import glob
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slmjax.errors import UserError


def local_path(path: str | Path, what: str) -> Path:
    """`path` with ~ expanded. UserError for the address of a bucket, which `Path` would make a directory `gs:` of."""
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        scheme, _, rest = text.partition(":")
        bucket = rest.strip("/").partition("/")[0]
        mount = f"gcsfuse {bucket} DIRECTORY" if scheme == "gs" else "a FUSE file system"
        raise UserError(
            f"{what} is the address {text}, but runs live in directories: mount the bucket ({mount}) and give its path."
        )
    return Path(text).expanduser()


@contextmanager
def place_directory(directory: Path, is_current: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A new directory to write into, renamed to `directory` when the block ends well and removed when it does not.

    Every process writes its own, so no lock is needed: the first to finish puts its result in place, and the others,
    finding that `is_current()` holds, drop theirs. An outdated `directory` (by default any that is there) is moved away
    first, then deleted.

    Raises:
        UserError: the disk is full, or the place may not be written to.
    """
    prefix = f".{directory.name}.partial-{socket.gethostname()}-"
    partial = directory.parent / f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        _remove_abandoned(directory.parent, prefix)
        yield partial
        while not _renamed(partial, directory):
            if is_current():
                return
            outdated = directory.parent / f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}"
            try:
                os.rename(directory, outdated)
            except FileNotFoundError:
                continue  # another process has just moved it away
            shutil.rmtree(outdated, ignore_errors=True)
    except OSError as error:
        _raise_as_user_error(error, directory)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def place_file(path: Path) -> Iterator[Path]:
    """The path of a new file to write, renamed to `path` when the block ends well and removed when it does not.

    What was written is synchronized to the disk before the rename, which replaces a file that lies there.

    Raises:
        UserError: the disk is full, or the place may not be written to.
    """
    partial = path.parent / f".{path.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        _raise_as_user_error(error, path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _raise_as_user_error(error: OSError, target: Path) -> None:
    """UserError for a full disk and for a place that may not be written to; returns for everything else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"The disk is full while writing {target}: free some space and try again.") from error
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR, errno.ENOTDIR) and error.filename:
        raise UserError(f"{error.filename} cannot be written ({error.strerror}): choose another place.") from error


def _renamed(partial: Path, directory: Path) -> bool:
    """Whether the rename succeeded; an empty directory is replaced by it, one with content is not."""
    try:
        os.rename(partial, directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """What processes of this host left behind when they were killed."""
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        process = path.name.removeprefix(prefix).partition("-")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
