"""The harness's tasks by name, without parsing its 14,000 YAML files at each start.

lm-evaluation-harness reads every file to learn which names there are: 7 to 10 seconds. Here only the lines that give
a file its name, its tags and its includes are read (under a second), and what they say is kept on disk, keyed by the
harness's version and place.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from slmjax.errors import UserError, did_you_mean
from slmjax.evaluation.harness.own_tasks import own_entries
from slmjax.evaluation.tasks.needle.task import needle_entries
from slmjax.files import cache_directory, local_path, place_file

Index = dict[str, Entry]

ROOT = Path(lm_eval.tasks.__file__).parent
_FORMAT = 1  # of the file on disk
_NAMING = re.compile(
    r"""^(?P<quote>["']?)(?P<key>task|group|tag|include|class)(?P=quote)[ ]*:[ ]*(?P<value>.*)\n?"""
    r"""(?P<items>(?:[ ]*-.*\n?)*)""",
    re.MULTILINE,
)
_PLAIN = re.compile(r"""(?:"([^"\\]*)"|'([^']*)'|([^\s"'\[{&*|>!#%@`,][^"'#{}\[\]&*!|>%@`]*?))\s*(?:#.*)?""")


def read_index(include_paths: Sequence[str] = ()) -> Index:
    """Every task, group and tag of the harness, our own tasks, and those of directories that a user adds, by name.

    A user's task hides another of its name, and so does one of our own.

    Raises:
        UserError: an include path is no directory, or holds no task.
    """
    index = _builtin() | own_entries() | needle_entries()
    for text in include_paths:
        directory = local_path(text, "--include-path")
        if not directory.is_dir():
            raise UserError(
                f"--include-path {directory} is not a directory: give one that holds the YAML files of tasks."
            )
        added = TaskIndex.build([directory.resolve()])
        if not added:
            raise UserError(f"--include-path {directory} holds no task: put the tasks' .yaml files there.")
        index |= added
    return index


def find_entry(name: str, index: Index) -> Entry:
    """The task, group or tag of this name, or the one that a YAML file defines.

    Raises:
        UserError: there is none; the nearest names are told. Or the file is not readable.
    """
    if name in index:
        return index[name]
    if name.endswith((".yaml", ".yml")):
        path = local_path(name, "The task's file")
        if not path.is_file():
            raise UserError(f"There is no task file {path}: give the name of a task, or the path of its YAML file.")
        return _entry_of_file(path)
    otherwise = "give a name that `lm_eval ls tasks` prints, or a YAML file."
    raise UserError(f"There is no task {name!r}: {did_you_mean(name, index, most=3, otherwise=otherwise)}")


def _entry_of_file(path: Path) -> Entry:
    index: Index = {}
    try:
        TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path.resolve(), index)
    except Exception as error:  # of the YAML parser, of a file that it includes, of the shape
        raise UserError(f"{path} is not a readable task ({' '.join(str(error).split())[:200]}).") from error
    return next(iter(index.values()))


@cache
def _builtin() -> Index:
    """The harness's own entries, from the file on disk where that is of this harness."""
    identity = [_FORMAT, lm_eval.__version__, str(ROOT), ROOT.stat().st_mtime_ns]
    directory = cache_directory()
    path = None if directory is None else directory / f"lm-eval-tasks-{lm_eval.__version__}.json"
    kept = None if path is None else _read(path, identity)
    if kept is not None:
        return kept
    index = scan(ROOT)
    if path is not None:
        with contextlib.suppress(OSError, UserError), place_file(path) as partial:  # a cache that cannot be written
            partial.write_text(json.dumps({"identity": identity, "entries": _to_json(index)}))
    return index


def scan(root: Path) -> Index:
    """The entries below a directory, equal to those of `TaskIndex.build` but for the parsed configuration in them."""
    index: Index = {}
    for path in sorted(_yaml_files(root)):
        with contextlib.suppress(Exception):  # as upstream, what cannot be read is no task
            TaskIndex.process_cfg(_naming_keys(path), Path(path), index)
    for entry in index.values():
        entry.cfg = None
    return index


def _yaml_files(root: Path) -> Iterable[str]:
    for directory, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        yield from (f"{directory}/{name}" for name in files if name.endswith(".yaml"))


def _naming_keys(path: str) -> dict[str, Any]:
    """The keys of a file that name it, those of the files that it includes among them."""
    keys = dict(_own_keys(path))
    includes = keys.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [includes] if isinstance(includes, str) else includes:
        merged |= _included_keys(os.path.normpath(os.path.join(os.path.dirname(path), name)))
    return merged | keys


@cache
def _included_keys(path: str) -> dict[str, Any]:
    return _naming_keys(path)


def _own_keys(path: str) -> dict[str, Any]:
    """The naming keys of one file: read by line where each is a plain value or a list of such, else by the parser."""
    keys: dict[str, Any] = {}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for match in _NAMING.finditer(text):
        key, value = match["key"], match["value"].strip()
        if key == "class" and value.startswith("!function"):
            keys[key] = value
        elif key == "task" and not value:
            keys[key] = []  # the members of a group, which are read when it is built
        elif value and (plain := _PLAIN.fullmatch(value)) and not match["items"]:
            keys[key] = _text(plain)
        elif not value and key in ("tag", "include"):
            items = [_PLAIN.fullmatch(line.strip()[1:].strip()) for line in match["items"].splitlines()]
            if not items or None in items:
                return _parsed_keys(path)
            keys[key] = [_text(item) for item in items if item]
        else:
            return _parsed_keys(path)
    return keys


def _text(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _parsed_keys(path: str) -> dict[str, Any]:
    parsed = load_yaml(path, resolve_func=False, recursive=False)
    return {key: parsed[key] for key in ("task", "group", "tag", "include", "class") if key in parsed}


def _to_json(index: Index) -> dict[str, list[Any]]:
    return {
        name: [entry.kind.name, entry.yaml_path and str(entry.yaml_path.relative_to(ROOT)), sorted(entry.tags)]
        for name, entry in index.items()
    }


def _read(path: Path, identity: list[Any]) -> Index | None:
    """The entries in a file that `_builtin` has written; None where there is none, or of another harness."""
    try:
        kept = json.loads(path.read_text())
        if kept["identity"] != identity:
            return None
        return {
            name: Entry(name, Kind[kind], file and ROOT / file, tags=set(tags))
            for name, (kind, file, tags) in kept["entries"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
