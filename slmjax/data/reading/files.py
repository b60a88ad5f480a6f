"""Files behind a path: below a directory or by a pattern, through symbolic links, each real file once."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from slmjax.errors import UserError

Wanted = Callable[[Path], bool]


def files_below(root: Path, wanted: Wanted = lambda path: True) -> list[Path]:
    """The files below a directory, sorted; nothing whose name begins with a dot.

    Links are followed. A file or directory that several links lead to is met once, under its own name where that lies
    below `root` too; so a link to a directory around it ends there.

    Args:
        wanted: tells by its name whether a file is looked for. Other names of a file do not count.

    Raises:
        UserError: a directory that cannot be listed, or a link that leads nowhere.
    """
    return _once((directory / name for directory in _directories(root) for name in _names(directory)), wanted)


def files_matching(pattern: Path, wanted: Wanted = lambda path: True) -> list[Path]:
    """The files of a pattern as in `glob` (`**` is any number of directories), sorted; links as in `files_below`.

    A part of the pattern that is the name of something that exists stands for that alone, brackets and all.
    """
    anchor = Path(pattern.anchor)
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    return _once(_expanded(anchor, parts), wanted)


def _expanded(base: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        for directory in _directories(base) if base.is_dir() else ():
            yield from _expanded(directory, rest or ("*",))
    elif not glob.has_magic(first) or os.path.lexists(base / first):
        if os.path.lexists(base / first):
            yield from _expanded(base / first, rest)
    elif base.is_dir():
        for name in _names(base, hidden=first.startswith(".")):
            if fnmatchcase(name, first):
                yield from _expanded(base / name, rest)


def _once(paths: Iterable[Path], wanted: Wanted) -> list[Path]:
    """The regular files among paths, each real one under one name: its own, or else the first."""
    found: dict[str, Path] = {}
    parents: dict[Path, str] = {}
    # A link without a suffix may have led to a directory.
    named = [(_real(path, parents), path) for path in paths if wanted(path) or not path.suffix]
    for real, path in sorted(named):
        if path.is_file():
            if wanted(path) and (real not in found or os.path.abspath(path) == real):
                found[real] = path
        elif path.is_symlink() and not path.exists():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which is not there: mount or restore it, or remove the link."
            )
    return sorted(found.values())


def _real(path: Path, parents: dict[Path, str]) -> str:
    """The path without links; those of directories are remembered, since many files share one."""
    if path.is_symlink():
        return os.path.realpath(path)
    if path.parent not in parents:
        parents[path.parent] = os.path.realpath(path.parent)
    return os.path.join(parents[path.parent], path.name)


def _directories(root: Path) -> Iterator[Path]:
    """`root` and every directory below it, once, those that links lead to after the others."""
    seen = {os.path.realpath(root)}
    inside, linked = deque([root]), deque[Path]()
    while inside or linked:
        directory = inside.popleft() if inside else linked.popleft()
        if directory.is_symlink() and directory != root:
            if (real := os.path.realpath(directory)) in seen:
                continue
            seen.add(real)
        yield directory
        for entry in _entries(directory):
            path = directory / entry.name
            if entry.is_symlink():
                linked.extend([path] if entry.is_dir() else [])
            elif entry.is_dir() and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                inside.append(path)


def _names(directory: Path, hidden: bool = False) -> list[str]:
    return [entry.name for entry in _entries(directory, hidden)]


def _entries(directory: Path, hidden: bool = False) -> list[os.DirEntry[str]]:
    """What a directory has, sorted by name; `hidden` with what begins with a dot."""
    try:
        with os.scandir(directory) as entries:
            found = [entry for entry in entries if hidden or not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{directory} cannot be listed ({error.strerror}): allow it to be read.") from error
    return sorted(found, key=lambda entry: entry.name)
