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
    """`path` with ~ expanded.

    Raises:
        UserError: an address, which `Path` would make a directory `gs:` of, or what `expanded_path` refuses.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(f"{what} is the address {text}, but only local paths are read and written: {_instead(text)}.")
    return expanded_path(path, what)


def expanded_path(path: str | Path, what: str) -> Path:
    """`path` with ~ expanded. UserError for a home that is not there, and what UTF-8 cannot hold."""
    text = os.fspath(path)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{what} is {text!r}, which is not text in UTF-8: rename it.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        home = text.partition("/")[0]
        raise UserError(f"{what} is {text}, and the home directory {home} is not known: write it out.") from error


def cache_directory() -> Path | None:
    """The directory in which slmjax keeps what it can make again: XDG_CACHE_HOME/slmjax, by default ~/.cache/slmjax.

    None where there is no home. It may not exist yet.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slmjax"
    except RuntimeError:
        return None


def _instead(address: str) -> str:
    """What works in the place of an address."""
    scheme, _, rest = address.partition(":")
    bucket, _, inside = rest.strip("/").partition("/")
    scheme = scheme.lower()
    if scheme in ("http", "https") and bucket in ("huggingface.co", "hf.co"):
        scheme, (bucket, _, inside) = "hf", inside.partition("/")
    if scheme == "hf" and bucket == "datasets":
        name = "/".join(inside.split("/")[:2])
        return f"fetch it (hf download --repo-type dataset {name} --local-dir DIRECTORY) and give the directory"
    if scheme == "hf":
        name = "/".join([bucket, inside.partition("/")[0]])
        return f"a model of the hub goes by its name, {name}; anything else is fetched first (hf download {name})"
    if scheme in ("http", "https", "ftp"):
        return "download it and give the path of the file"
    if scheme == "file":
        return f"give the path alone, {'/' + rest.lstrip('/')}"
    mounts = {"gs": f"gcsfuse {bucket} DIRECTORY", "s3": f"mount-s3 {bucket} DIRECTORY"}
    return f"mount the bucket ({mounts.get(scheme, 'a FUSE file system')}) and give its path"


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
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
