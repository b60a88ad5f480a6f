"""Models that are split over GGUF files, as llama.cpp's gguf-split names and marks them.

The files are NAME-00001-of-00003.gguf and so on. Each says in split.no (from 0) and split.count which part it is, and
in split.tensors.count how many tensors all have together; the first holds the model's other metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slmjax.errors import UserError

T = TypeVar("T")
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE | re.DOTALL)


def part_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Every part of the model that a file with this metadata belongs to, in order; the file alone where it is whole.

    Raises:
        UserError: the file is a part, and its name does not say which, or another part does not lie beside it.
    """
    count: Any = metadata.get("split.count", 1)
    number: Any = metadata.get("split.no")
    if not _is_whole(count) or count <= 1:
        return [path]
    if _NAME.fullmatch(path.name) is None:  # it may be a link under a name of its own
        path = path.resolve()
    name = _NAME.fullmatch(path.name)
    if name is None or not _is_whole(number) or (int(name["number"]), int(name["count"])) != (number + 1, count):
        raise UserError(
            f"{path} is one of {count} files over which a model is split, and its name does not say which: give each "
            f"the name back that it had, which ends in -00001-of-{count:05}.gguf and so on."
        )
    paths = []
    for i in range(count):  # as far as they are there: a file may claim any number
        paths.append(path.with_name(f"{name['stem']}-{i + 1:05}-of-{count:05}{name['suffix']}"))
        if not paths[-1].is_file():
            raise UserError(
                f"{path} is part {number + 1} of a model that is split over {count} files, of which {paths[-1].name} "
                f"is not there: put all {count} into one directory."
            )
    return paths


def joined(parts: Sequence[tuple[Path, Mapping[str, Any], Mapping[str, T]]]) -> dict[str, T]:
    """The tensors of all parts, each given as (path, metadata, tensors), in order.

    Raises:
        UserError: a file is another part than its name says, a tensor is there twice, or some are not there.
    """
    tensors: dict[str, T] = {}
    for i, (path, metadata, own) in enumerate(parts):
        if (metadata.get("split.no"), metadata.get("split.count")) != (i, len(parts)):
            raise UserError(f"{path} is not the part {i + 1} of {len(parts)} that its name says: fetch it anew.")
        if twice := sorted(tensors.keys() & own.keys()):
            raise UserError(f"{path} has the tensor {twice[0]!r}, as an earlier part has: fetch both anew.")
        tensors |= own
    first, metadata, _ = parts[0]
    total = metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise UserError(f"{first} says that all parts hold {total} tensors, not {len(tensors)}: fetch them anew.")
    return tensors


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0
