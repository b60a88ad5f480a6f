"""Orbax, imported late because it takes a while, with its messages on stderr left out."""

from __future__ import annotations

import errno
import logging
from typing import Any


def orbax() -> Any:
    """The module `orbax.checkpoint`."""
    import orbax.checkpoint

    absl_logger = logging.getLogger("absl")
    if _not_from_orbax not in absl_logger.filters:
        absl_logger.addFilter(_not_from_orbax)
        logging.getLogger("asyncio").addFilter(_no_full_disk)
    return orbax.checkpoint


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
