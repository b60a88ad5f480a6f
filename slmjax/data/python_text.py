"""The text that every Python installation carries: documentation topics, and the standard library with docstrings."""

import functools
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from slmjax.errors import UserError

_DEFAULT_MEGABYTES = 12.0
# Tests, generated tables, and what is not the library's own.
_SKIPPED = frozenset(
    [
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "encodings",
        "pydoc_data",
        "lib2to3",
        "ensurepip",
        "turtledemo",
        "lib-dynload",
        "config-3",
        "__phello__",
    ]
)
_LARGEST_FILE = 1 << 20


def python_files(query: Mapping[str, str]) -> list[Path]:
    """The files of `python:stdlib`, the topics first; the same for the same Python version and query.

    Where `max_megabytes` (10^6 bytes, 12 by default) does not hold them all, files are taken in the order of the hash
    of their name, so that a small corpus is a sample of all of the library and not its first letters.
    """
    root = Path(sysconfig.get_path("stdlib"))
    budget = _megabytes(query) * 1e6
    topics = root / "pydoc_data" / "topics.py"
    chosen = []
    for path in ([topics] if topics.is_file() else []) + _library(root):
        size = path.stat().st_size
        if 0 < size <= min(budget, _LARGEST_FILE):
            chosen.append(path)
            budget -= size
    if not chosen:
        raise UserError(f"The Python installation at {root} has no library text: name another source of text.")
    return sorted(chosen, key=lambda path: (path != topics, path.relative_to(root).as_posix()))


@functools.cache
def _library(root: Path) -> list[Path]:
    """The library's own modules, in the order of the hash of their name; installed packages are never walked."""
    found = []
    for directory, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _SKIPPED and not name.startswith("config-")]
        generated = ("_sysconfigdata", "sitecustomize", "_sitebuiltins")
        found += [Path(directory, n) for n in names if n.endswith(".py") and not n.startswith(generated)]
    return sorted(found, key=lambda path: hashlib.blake2b(path.relative_to(root).as_posix().encode()).digest())


def python_documents(query: Mapping[str, str], consumed: Callable[[int], object] = lambda _: None) -> Iterator[str]:
    """Each documentation topic and each module of `python_files`, docstrings and all, as a document."""
    for path in python_files(query):
        if path.parent.name == "pydoc_data":
            from pydoc_data.topics import topics

            yield from (topics[name] for name in sorted(topics))
        else:
            text = path.read_bytes().decode("utf-8", errors="ignore")
            if "\0" not in text:
                yield text
        consumed(path.stat().st_size)


def _megabytes(query: Mapping[str, str]) -> float:
    unknown = set(query) - {"max_megabytes"}
    if unknown:
        raise UserError(f"The source python:stdlib takes max_megabytes, not {', '.join(sorted(unknown))}.")
    try:
        megabytes = float(query.get("max_megabytes", _DEFAULT_MEGABYTES))
    except ValueError:
        megabytes = 0.0
    if not megabytes > 0:
        raise UserError(
            f"The value of max_megabytes in python:stdlib must be a number above 0, not {query['max_megabytes']!r}."
        )
    return megabytes
