"""Files and values that others wrote: opened only inside their directory, read key by key with a type and bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slmjax.errors import UserError, shown

# Bounds on what a hostile file makes us count to, trace or allocate; far above any small language model's own numbers.
MAX_JSON_BYTES = 1 << 26  # a tokenizer.json of 256k tokens and their merges has about 2^25
MAX_TEMPLATE_BYTES = 1 << 20  # the longest published chat templates have about 2^14
MAX_SIZE = 1 << 24  # any whole number: vocabularies end near 2^18, contexts near 10 million (Llama 4)
MAX_NUMBER = 1e30  # any other: above it float32 ends, and products with it are infinite
MAX_LAYERS = 1 << 10  # each layer is traced and named; the deepest published dense network has 126 (Llama 3.1 405B)
MAX_RANK = 1 << 14  # of a LoRA module: the width of a large network
MAX_VIRTUAL_TOKENS = 1 << 16  # of a prefix or prompt: a long context
MAX_NAMES = 1 << 12  # names or patterns in one list
MAX_NAME_CHARS = 1 << 12  # a path, a module's name

T = TypeVar("T")
_MISSING: Any = object()


@dataclass(frozen=True)
class Values:
    """An object of JSON, or a file's metadata. Each method gives a checked value, or UserError naming file and key.

    Null counts as absent: the default is given, and where there is none the error says so.
    """

    mapping: Mapping[str, Any]
    where: str  # the file, as errors name it
    prefix: str = ""  # before every key ("llama." in GGUF's metadata)

    def get(self, key: str) -> Any:
        """The value as it is, None where absent."""
        return self.mapping.get(self.prefix + key)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def integer(self, key: str, default: T = _MISSING, *, least: int = 0, most: int = MAX_SIZE) -> int | T:
        """A whole number from `least` to `most`."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.error(key, f"must be a whole number from {least:,} to {most:,}")
        return value

    def number(self, key: str, default: T = _MISSING, *, most: float = MAX_NUMBER) -> float | T:
        """A finite number of at most this size."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:
            raise self.error(key, "must be a number")
        return float(value)

    def numbers(self, key: str, *, most: int = MAX_LAYERS) -> tuple[float, ...]:
        """A list of finite numbers, at most so many."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) > most:
            raise self.error(key, "must be a list of numbers")
        return tuple(Values({key: item}, self.where).number(key) for item in value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def text(self, key: str, default: T = _MISSING, *, most: int = MAX_NAME_CHARS) -> str | T:
        """A string of at most so many characters."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return default
        if not isinstance(value, str) or len(value) > most:
            raise self.error(key, f"must be a text of at most {most:,} characters")
        return value

    def names(self, key: str, default: T = _MISSING) -> list[str] | T:
        """A list of strings."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return default
        fits = isinstance(value, list) and len(value) <= MAX_NAMES
        if not fits or not all(isinstance(name, str) and len(name) <= MAX_NAME_CHARS for name in value):
            raise self.error(key, "must be a list of names")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """A nested object; empty where absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "must be an object")
        return value or {}

    def require(self, **expected: Any) -> None:
        """UserError where a key is there with another value than this one."""
        for key, wanted in expected.items():
            if self.get(key) not in (wanted, None):
                raise UserError(f"{self.where}: {key} is {shown(self.get(key))}; only {wanted!r} can be run here.")

    def error(self, key: str, wanted: str) -> UserError:
        """An error that names file, key and value: `wanted` says what the value must be."""
        value = self.get(key)
        found = "is missing" if value is None else f"is {shown(value)}"
        return UserError(f"{self.where}: {self.prefix}{key} {found}; it {wanted}.")


def require_bounded(value: Any, key: str, where: str, most: int = MAX_SIZE) -> None:
    """UserError where a whole number anywhere in a JSON value is beyond `most`, a float not finite, or a text longer.

    For values that a dataclass checks further: it must not count to what is written there.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            require_bounded(item, f"{key}.{name}", where, most)
    elif isinstance(value, list):
        for item in value:
            require_bounded(item, key, where, most)
    elif isinstance(value, str):
        if len(value) > most:
            raise UserError(f"{where}: {key} has {len(value):,} characters; at most {most:,} can be meant.")
    elif isinstance(value, float) and not abs(value) <= MAX_NUMBER:
        raise UserError(f"{where}: {key} is {value}, which is not a number that a model can have.")
    elif isinstance(value, int) and abs(value) > most:
        raise UserError(f"{where}: {key} is {shown(value)}, beyond any model's ({most:,} at most).")


def inside(directory: Path, name: str) -> Path:
    """The regular file `name` of a directory; UserError when it is none, or would lead out of the directory.

    The cache of huggingface_hub keeps its files beside the directories of its snapshots and links to them: for a
    directory models--X/snapshots/Y, models--X/blobs counts as inside.
    """
    if not name or Path(name).name != name or name in (".", "..") or "\0" in name or len(name.encode()) > 255:
        raise UserError(f"{directory} names the file {name[:200]!r}, which is not a file's plain name.")
    path = directory / name
    root = directory.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
        raise UserError(f"{path} is a link that leads out of its directory: put the file itself there.")
    if not path.is_file():
        raise UserError(f"{directory} is incomplete: {name} is missing.")
    return path


def read_text(path: Path, *, most: int = MAX_JSON_BYTES) -> str:
    """A file's text; UserError when it is larger than `most` bytes or not UTF-8."""
    if path.stat().st_size > most:
        raise UserError(f"{path} has more than {most:,} bytes, which is more than such a file can need.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError when it is none."""
    values = parse_json(read_text(path).removeprefix("\ufeff"), path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object.")
    return values


def parse_json(text: str, path: Path) -> Any:
    """The JSON value in the text of a file; UserError when it is none, or holds what no file can be written with."""
    try:
        values = json.loads(text)
        if r"\ud" in text.lower():  # a lone surrogate is no character; pairs are, and have become one
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path} holds half of a surrogate pair, which is not a character: fix the escape.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}).") from error
    return values
