"""Sources to documents: what a source's path stands for, and which reader takes each file."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

from slmjax.data.config import SourceConfig, SourceFormat
from slmjax.data.python_text import python_documents, python_files
from slmjax.data.readers import (
    Consumed,
    json_records,
    parquet_records,
    read_array_record,
    read_jsonl,
    read_parquet,
    read_text,
    read_tfds,
    tfds_records,
)
from slmjax.errors import UserError, first_few, one_line
from slmjax.files import local_path

_TEXT_SUFFIXES = frozenset(
    f".{name}"
    for name in [
        "txt",
        "text",
        "md",
        "markdown",
        "rst",
        "tex",
        "html",
        "tokens",
        "py",
        "js",
        "ts",
        "c",
        "h",
        "cc",
        "cpp",
        "hpp",
        "cu",
        "java",
        "go",
        "rs",
        "rb",
        "sh",
        "sql",
        "jl",
    ]  # code is text
)
_JSONL_SUFFIXES = frozenset((".jsonl", ".ndjson", ".json"))


def read_documents(source: SourceConfig, consumed: Consumed = lambda _: None) -> Iterator[str]:
    """The documents of a source, in a fixed order; empty ones are left out.

    Args:
        source: see `SourceConfig`.
        consumed: is told the bytes read from disk, for a progress bar against `source_bytes`.

    Raises:
        UserError: missing, unknown, empty, undecodable or damaged data, or a missing text field, with its place.
    """
    count = 0
    for text in _read(source, consumed):
        if text.strip():
            count += 1
            yield text
    if count == 0:
        raise UserError(f"{source.path} has no text.")


def read_records(source: SourceConfig, consumed: Consumed = lambda _: None) -> Iterator[tuple[str, Any]]:
    """The records of a source, each with its place in words, in a fixed order.

    JSON Lines, a JSON array, Parquet or TFDS; what a record must hold is the caller's to say.

    Raises:
        UserError: missing or damaged data, or a source of another kind.
    """
    kind = source_format(source)
    if kind == "tfds":
        name, split, data_dir = _tfds(source.path)
        yield from tfds_records(name, split, data_dir)
        return
    readers = {"jsonl": json_records, "parquet": parquet_records}
    for path in source_files(source):
        format = _format_of(path) if kind == "auto" else kind
        if format not in readers:
            raise UserError(f"{path} has no records with fields: give JSON Lines, a JSON array, Parquet or tfds:….")
        try:
            yield from readers[format](path, consumed)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or one_line(error)}).") from error


def source_files(source: SourceConfig) -> list[Path]:
    """The files that a source reads, sorted; none for TFDS, which names its own.

    Raises:
        UserError: nothing is there, or nothing of a known format.
    """
    kind = source_format(source)
    if kind == "python":
        return python_files(_query(source.path))
    if kind == "tfds":
        return []
    path = local_path(source.path, "The source")
    if path.is_file():
        return [path]
    if path.is_dir():
        matching = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
    elif pattern := _pattern(path):
        matching = (Path(p) for p in glob.glob(pattern, recursive=True))
    else:
        raise UserError(
            f"There is no data at {source.path}: give a file, a directory, a glob, tfds:… or python:stdlib."
        )
    files = sorted(p for p in matching if p.is_file())
    known = [p for p in files if kind != "auto" or _format_of(p) is not None]
    if not known:
        names = first_few([path.name for path in files], 5)
        found = f"has no file of a known format, only {names}" if names else "has no files"
        raise UserError(f"{source.path} {found}: give another path, or set the format of the source.")
    return known


def _pattern(path: Path) -> str:
    """A glob of `path`, "" where it is none; directories that are there by their names ("[2026]") mean themselves."""
    there = next((parent for parent in path.parents if parent.exists()), Path())
    rest = str(path.relative_to(there))
    return os.path.join(glob.escape(str(there)), rest) if glob.has_magic(rest) else ""


def source_format(source: SourceConfig) -> SourceFormat:
    """The format that the path's scheme or the config names; "auto" where each file's name decides."""
    for prefix, kind in (("tfds:", "tfds"), ("python:", "python")):
        if source.path.startswith(prefix):
            if kind == "python" and source.path.partition("?")[0] != "python:stdlib":
                raise UserError(f"{source.path} is unknown: the only source of this kind is python:stdlib.")
            return cast(SourceFormat, kind)
    return source.format


def _read(source: SourceConfig, consumed: Consumed) -> Iterator[str]:
    kind = source_format(source)
    if kind == "python":
        yield from python_documents(_query(source.path), consumed)
        return
    if kind == "tfds":
        yield from read_tfds(*_tfds(source.path), source.text_field)
        return
    readers = {"text": read_text, "jsonl": read_jsonl, "parquet": read_parquet, "array_record": read_array_record}
    for path in source_files(source):
        format = _format_of(path) if kind == "auto" else kind
        if format is None:
            choices = ", ".join(readers)
            raise UserError(
                f"The name of {path} does not tell its format: set the source's format to one of {choices}."
            )
        try:
            yield from readers[format](path, source.text_field, consumed)
        except OSError as error:  # includes gzip.BadGzipFile
            raise UserError(f"{path} cannot be read ({error.strerror or one_line(error)}).") from error


def _format_of(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    suffix = Path(name).suffix
    if re.search(r"\.array_?record", name):
        return "array_record"
    if suffix in _JSONL_SUFFIXES:
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    return "text" if suffix in _TEXT_SUFFIXES else None


def _tfds(path: str) -> tuple[str, str, str | None]:
    """Name, split and directory of tfds:name?split=…&data_dir=…"""
    query = _query(path)
    return path.removeprefix("tfds:").partition("?")[0], query.get("split", "train"), query.get("data_dir")


def _query(path: str) -> dict[str, str]:
    return dict(parse_qsl(path.partition("?")[2]))
