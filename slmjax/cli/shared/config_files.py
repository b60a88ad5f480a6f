"""`--config FILE --config.section.key=value ...`: a config file is Python with `get_config()`."""

from __future__ import annotations

import ast
import runpy
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from slmjax.errors import UserError
from slmjax.training.config import nearest

SOURCES = ("data.sources", "data.validation")  # where names are the user's own


def load_config(path: str, overrides: list[str]) -> ConfigDict:
    """Run a config file and apply `--config.a.b=value` overrides to what its `get_config()` returns.

    FILE.py:ARGUMENT calls `get_config("ARGUMENT")`: one file for experiments that differ in more than a key.
    """
    file, given = Path(path), []
    if not file.is_file() and ":" in path:
        path, _, argument = path.rpartition(":")
        file, given = Path(path), [argument]
    if not file.is_file():
        raise UserError(f"There is no config file {path}; the ones that ship are in configs/.")
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise UserError(f"{path} has no function get_config().")
        config = get_config(*given)
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f", line {lines[-1]}," if lines else ""
        raise UserError(f"{path}{where} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return a ConfigDict (start from default_config), not {config!r}.")
    for override in overrides:
        apply_override(config, override)
    return config


def apply_override(config: ConfigDict, override: str) -> None:
    """Set one key of a config from `--config.a.b=value`. The value takes the type of the one that is there."""
    key, equals, text = override.removeprefix("--config.").partition("=")
    if not equals:
        raise UserError(f"{override} has no value: write --config.{key}=VALUE.")
    *sections, name = key.split(".")
    node: Any = config
    for depth, section in enumerate([*sections, name]):
        place = ".".join(key.split(".")[:depth]) or "the config"
        if not isinstance(node, ConfigDict) or (section not in node and place not in SOURCES):
            known = list(node.keys()) if isinstance(node, ConfigDict) else []
            raise UserError(f"--config.{key}: {place} has no key {section!r}; {nearest(section, known)}")
        if depth == len(sections):
            break
        if place in SOURCES:  # a source may be new, and a config file names only the fields that it sets
            conversations = "chat_template" in config.data
            defaults = {"path": "", "weight": 1.0, "format": "auto"} | ({} if conversations else {"text_field": "text"})
            node[section] = ConfigDict(defaults | (node[section].to_dict() if section in node else {}))
        node = node[section]
    if ".".join(sections) in SOURCES:
        raise UserError(f"--config.{key} names a source: set its path, as in --config.{key}.path={text}.")
    if isinstance(node.get(name), ConfigDict):
        raise UserError(f"--config.{key} is a section: set one of its keys, {', '.join(node[name].keys())}.")
    value = _parse(text, node[name], key)
    if key.split(".")[0] == "training" and name in ("steps", "tokens", "tokens_per_param") and value:
        for other in ("steps", "tokens", "tokens_per_param"):  # one budget replaces another
            if other != name and other in node:
                node[other] = type(node[other])(0)
    with node.ignore_type():
        node[name] = value


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
