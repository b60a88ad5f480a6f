"""Orbax, imported late because it takes a while, with its messages on stderr left out."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import logging
import os
import pathlib
import re
import tempfile
from typing import Any

from slmjax.errors import UserError


def orbax() -> Any:
    """The module `orbax.checkpoint`."""
    import orbax.checkpoint

    _glob_as_pathlib_does()
    absl_logger = logging.getLogger("absl")
    if _not_from_orbax not in absl_logger.filters:
        absl_logger.addFilter(_not_from_orbax)
        logging.getLogger("asyncio").addFilter(_no_full_disk)
    return orbax.checkpoint


@functools.cache
def _glob_as_pathlib_does() -> None:
    """Have etils' paths, which Orbax uses, take a directory's own name literally when files are looked for in it.

    etils joins directory and pattern and gives both to `glob`: below a directory that is called "[1]" nothing is found,
    Orbax leaves the parts of a checkpoint unmerged, and it can never be read.
    """
    from etils import epath

    kind = type(epath.Path("/"))
    original = kind.glob

    def glob_in(self: Any, pattern: str) -> Any:
        directory = os.fspath(self)
        if glob.escape(directory) == directory:
            return original(self, pattern)
        return (kind(path) for path in pathlib.Path(directory).glob(pattern))

    kind.glob = glob_in


def plainly_named(directory: pathlib.Path) -> pathlib.Path:
    """The directory, by way of a link of another name where TensorStore would misread its own.

    TensorStore takes a backslash for a slash, and `:/` for the end of a scheme. The link is the same on every process.
    """
    if not re.search(r"\\|:/", str(directory)):
        return directory
    links = pathlib.Path(tempfile.gettempdir()) / f"slmjax-links-{os.getuid() if hasattr(os, 'getuid') else 0}"
    link = links / hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]
    links.mkdir(mode=0o700, exist_ok=True)
    if not link.is_symlink():
        with contextlib.suppress(FileExistsError):  # another process was quicker
            link.symlink_to(directory, target_is_directory=True)
    if (hasattr(os, "getuid") and links.stat().st_uid != os.getuid()) or link.readlink() != directory:
        raise UserError(f"{links} belongs to somebody else, and is needed to write {directory}: set TMPDIR.")
    return link


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk or quota is at the root of an error; TensorStore wraps it in a ValueError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _no_full_disk(record: logging.LogRecord) -> bool:
    """Of the writes that a full disk stopped, one has been told; asyncio reports the others with a traceback."""
    return not (record.exc_info and is_full_disk(record.exc_info[1]))
