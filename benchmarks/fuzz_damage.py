"""What a kind of file is to fuzz.py, and how one of its sound directories is damaged."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_mutations as mutations

from slmjax.formats.gguf.file import open_gguf

Files = dict[str, bytes]  # of one directory, by name


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        share: cases of this kind among all, in proportion to the others'; few where one takes long.
        seeds: sound files, as directories; made in an empty folder.
        read: reads a directory, and raises UserError or nothing.
        suffixes: of the files that are damaged; none: of all.
    """

    share: int
    seeds: Callable[[Path], list[Files]]
    read: Callable[[Path], None]
    suffixes: tuple[str, ...] = ()


class Damage:
    """Damages files of all kinds; knows the sound GGUF files, parsed."""

    def __init__(self) -> None:
        self.parsed: dict[bytes, Any] = {}

    def __call__(self, kind: Kind, seeds: list[Files], rng: random.Random) -> Files:
        """One of the sound directories, with one of its files damaged, seldom two; seldom one is missing."""
        files = dict(rng.choice(seeds))
        names = [name for name in files if not kind.suffixes or name.endswith(kind.suffixes)]
        for name in rng.sample(names, min(len(names), rng.choice([1, 1, 1, 1, 2]))):
            if rng.random() < 0.01:
                del files[name]
            elif name.endswith(".gguf"):
                files[name] = mutations.damage_gguf(files[name], rng, self.parsed)
            else:
                by_suffix = mutations.BY_SUFFIX.get(Path(name).suffix, mutations.damage_bytes)
                files[name] = by_suffix(files[name], rng)
        return files

    def know(self, seeds: list[Files]) -> None:
        """Parse the GGUF files among sound ones."""
        for content in (content for files in seeds for name, content in files.items() if name.endswith(".gguf")):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "a.gguf"
                path.write_bytes(content)
                file = open_gguf(path)
                start = min(info.start for info in file.tensors.values())
                infos = [
                    (name, info.shape[::-1], info.kind.number, info.start - start)
                    for name, info in file.tensors.items()
                ]
                self.parsed[content] = (dict(file.metadata), infos, start)
