"""`--config FILE --config.section.key=value ...`: a config file is Python with `get_config()`."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from slmjax.data.sft_config import data_config_class
from slmjax.errors import UserError, did_you_mean, one_line
from slmjax.field_types import field_types
from slmjax.files import expanded_path, local_path
from slmjax.recipes.config import SECTIONS
from slmjax.training.config import BUDGETS

NAMED = ("data.sources", "data.validation")  # where names are the user's own


def load_config(path: str, overrides: list[str]) -> ConfigDict:
    """Run a config file and apply `--config.a.b=value` overrides to what its `get_config()` returns.

    FILE.py:ARGUMENT calls `get_config("ARGUMENT")`: one file for experiments that differ in more than a key. The file
    may import modules that lie beside it.

    Raises:
        UserError: there is no such file, it fails, it returns something else, or an override names no key of it.
    """
    file, given = _config_file(path), []
    if not file.is_file() and ":" in path:
        path, _, argument = path.rpartition(":")
        file, given = _config_file(path), [argument]
    if not file.is_file():
        raise UserError(f"There is no config file {path}: give a Python file that has a function get_config().")
    try:
        with neighbours_of(file):
            get_config = runpy.run_path(str(file)).get("get_config")
            if get_config is None:
                raise UserError(f"{path} has no function get_config(): let one return the config.")
            config = get_config(*given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{_place(file, path, error)} fails: {type(error).__name__}: {one_line(error)}.") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return a ConfigDict (start from default_config), not {config!r}.")
    for override in overrides:
        apply_override(config, override)
    return config


def _config_file(path: str) -> Path:
    # The argument of FILE.py:ARGUMENT may be a path, and only :// makes an address.
    return local_path(path, "--config") if "://" in path else expanded_path(path, "--config")


class _Neighbours:
    """A finder of the modules in one directory; `found` holds the names that it was needed for."""

    def __init__(self, directory: Path):
        self._directory = str(directory)
        self.found: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if path is not None:  # inside a package, which the usual finders know by then
            return None
        spec = PathFinder.find_spec(name, [self._directory])
        if spec is not None:
            self.found.add(name)
        return spec


@contextmanager
def neighbours_of(file: Path) -> Iterator[None]:
    """A context in which modules beside `file` can be imported; they are forgotten when it ends.

    They are looked for last: one that is called as a library is hides it from nobody. Being forgotten, a module of one
    config is not taken for another's of the same name.
    """
    finder = _Neighbours(file.resolve().parent)
    importlib.invalidate_caches()  # a file may have been written just now
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.found]:
            del sys.modules[name]


def _place(file: Path, path: str, error: Exception) -> str:
    """The file and line at which a config failed, in itself or in a neighbour."""
    directory = file.resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(file):
            return f"{path}, line {frame.lineno},"
        if Path(frame.filename).parent == directory:
            return f"{frame.filename}, line {frame.lineno},"
    return path


def apply_override(config: ConfigDict, override: str) -> None:
    """Set one key of a config from `--config.a.b=value`. The value takes the type of the one that is there."""
    key, equals, text = override.removeprefix("--config.").partition("=")
    if not equals:
        raise UserError(f"{override} has no value: write --config.{key}=VALUE.")
    *sections, name = key.split(".")
    node: Any = config
    for depth, section in enumerate([*sections, name]):
        place = ".".join(key.split(".")[:depth]) or "the config"
        if not isinstance(node, ConfigDict):
            raise UserError(f"--config.{key}: {place} is a value and has no keys: write --config.{place}=VALUE.")
        if section not in node and place not in NAMED:
            known = list(node.keys())
            raise UserError(f"--config.{key}: {place} has no key {section!r}; {did_you_mean(section, known)}")
        if depth == len(sections):
            break
        if place in NAMED:  # a source may be new, and a config file names only the fields that it sets
            given = node[section].to_dict() if section in node else {}
            node[section] = ConfigDict(_source_defaults(config) | given)
        node = node[section]
    if ".".join(sections) in NAMED:
        raise UserError(f"--config.{key} names a source: set its path, as in --config.{key}.path={text}.")
    if isinstance(node.get(name), ConfigDict):
        raise UserError(f"--config.{key} is a section: set one of its keys, {', '.join(node[name].keys())}.")
    value = _texts(text) if _takes_texts(config, key) else _parse(text, node[name], key)
    if key.split(".")[0] == "training" and name in BUDGETS and value:
        for other in BUDGETS:  # one budget replaces another
            if other != name and other in node:
                node[other] = type(node[other])(0)
    with node.ignore_type():
        node[name] = value


def _source_defaults(config: ConfigDict) -> dict[str, Any]:
    """The fields of a source of this config's kind of data; "" where there is no default."""
    kind = data_config_class(config.data).source_class
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        made = field.default_factory
        defaults[field.name] = made() if made is not dataclasses.MISSING else field.default
    return {name: "" if value is dataclasses.MISSING else value for name, value in defaults.items()}


def _takes_texts(config: ConfigDict, key: str) -> bool:
    """Whether a key's field is a tuple of texts, in which 2024 is a text too."""
    first, *rest = key.split(".")
    kind: Any = data_config_class(config.data) if first == "data" else SECTIONS.get(first)
    for name in rest:
        kind = field_types(kind).get(name) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
    return kind == tuple[str, ...]


def _texts(text: str) -> tuple[str, ...]:
    """One text as it stands, or several: a tuple or list as Python writes it, or values between commas."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return (text,)
    if not isinstance(values, tuple | list):
        return (values if isinstance(values, str) else text,)
    return tuple(value if isinstance(value, str) else str(value) for value in values)


def _parse(text: str, old: Any, key: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if isinstance(old, str):
        return text
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(old, bool) or old is None or value is None:
        fits = old is None or isinstance(value, bool)
    elif isinstance(old, int):
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 2e9 tokens
        fits = isinstance(value, int | tuple) and not isinstance(value, bool)
    elif isinstance(old, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    else:
        fits = isinstance(value, type(old)) or isinstance(old, tuple)
        value = (value,) if isinstance(old, tuple) and not isinstance(value, tuple) else value
    if not fits:
        raise UserError(f"--config.{key}={text} must be {_kind(old)}, as in --config.{key}={old}.")
    return value


def _kind(value: Any) -> str:
    return {bool: "True or False", int: "a whole number", float: "a number", tuple: "a tuple"}.get(
        type(value), "a value"
    )
