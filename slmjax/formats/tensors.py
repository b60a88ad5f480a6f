"""A tensor of a file, as its header describes it, and one that is to be written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

K = TypeVar("K")  # how a format says what its numbers are: a dtype, a type of blocks


@dataclass(frozen=True)
class StoredTensor(Generic[K]):
    """A tensor's place in a file: `start` counts bytes from the file's beginning, `shape` has the row last."""

    path: Path
    shape: tuple[int, ...]
    kind: K
    start: int
    num_bytes: int


@dataclass(frozen=True)
class PlannedTensor(Generic[K]):
    """A tensor that will be written; `shape` has the row last, as numpy writes it."""

    name: str
    shape: tuple[int, ...]
    kind: K
