"""Files behind a path: below a directory or by a pattern, through symbolic links, each real file once."""

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from slmjax.errors import UserError


def files_below(root: Path) -> list[Path]:
    """The files below a directory, sorted; nothing whose name begins with a dot.

    Links are followed. A file or directory that several links lead to is met once, under its own name where that lies
    below `root` too; so a link to a directory around it ends there.

    Raises:
        UserError: a directory that cannot be listed, or a link that leads nowhere.
    """
    return _once(directory / name for directory in _directories(root) for name in _names(directory))


def files_matching(pattern: Path) -> list[Path]:
    """The files of a pattern as in `glob` (`**` is any number of directories), sorted; links as in `files_below`.

    A part of the pattern that is the name of something that exists stands for that alone, brackets and all.
    """
    anchor = Path(pattern.anchor)
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    return _once(_expanded(anchor, parts))


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


def _once(paths: Iterable[Path]) -> list[Path]:
    """The regular files among paths, each real one under one name: its own, or else the first."""
    found: dict[str, Path] = {}
    for real, path in sorted((os.path.realpath(path), path) for path in paths):
        if path.is_file():
            if real not in found or os.path.abspath(path) == real:
                found[real] = path
        elif path.is_symlink() and not path.exists():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which is not there: mount or restore it, or remove the link."
            )
    return sorted(found.values())


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
        for path in map(directory.joinpath, _names(directory)):
            if path.is_symlink():
                linked.extend([path] if path.is_dir() else [])
            elif path.is_dir() and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                inside.append(path)


def _names(directory: Path, hidden: bool = False) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise UserError(f"{directory} cannot be listed ({error.strerror}): allow it to be read.") from error
    return [name for name in names if hidden or not name.startswith(".")]
