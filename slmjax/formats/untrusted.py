"""Files of directories that others made: what is opened lies in the directory, and is small where it is read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slmjax.errors import UserError

_MAX_JSON = 1 << 26  # bytes


def inside(directory: Path, name: str) -> Path:
    """The regular file `name` of a directory; UserError when it is none, or would lead out of the directory.

    The cache of huggingface_hub keeps its files beside the directories of its snapshots and links to them: for a
    directory models--X/snapshots/Y, models--X/blobs counts as inside.
    """
    if not name or Path(name).name != name or name in (".", ".."):
        raise UserError(f"{directory} names the file {name[:200]!r}, which is not a file's plain name.")
    path = directory / name
    root = directory.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
        raise UserError(f"{path} is a link that leads out of its directory: put the file itself there.")
    if not path.is_file():
        raise UserError(f"{directory} is incomplete: {name} is missing.")
    return path


def read_text(path: Path, *, most: int = _MAX_JSON) -> str:
    """A file's text; UserError when it is larger than `most` bytes or not UTF-8."""
    if path.stat().st_size > most:
        raise UserError(f"{path} has more than {most:,} bytes, which is more than such a file can need.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError when it is none."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object.")
    return values
