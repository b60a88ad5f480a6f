"""Sources to documents: what a source's path stands for, and which reader takes each file."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from slmjax.data.config import SourceConfig, SourceFormat
from slmjax.data.python_text import python_documents, python_files
from slmjax.data.readers import read_array_record, read_text, tfds_records
from slmjax.data.reading.compression import Consumed, plain_name
from slmjax.data.reading.datasets import Part, choose_parts, parts_of_directory
from slmjax.data.reading.fields import text_of
from slmjax.data.reading.files import files_below, files_matching
from slmjax.data.reading.json_records import json_records
from slmjax.data.reading.tables import arrow_records, csv_records, parquet_records
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
_RECORD_SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
T = TypeVar("T")
_RecordReader = Callable[[Path, Consumed, Sequence[str]], Iterator[tuple[str, Any]]]
_RECORD_READERS: dict[str, _RecordReader] = {
    "jsonl": lambda path, consumed, fields: json_records(path, consumed),
    "csv": csv_records,
    "parquet": parquet_records,
    "arrow": arrow_records,
}


def read_documents(source: SourceConfig, consumed: Consumed = lambda _: None) -> Iterator[str]:
    """The documents of a source, in a fixed order; empty ones are left out.

    Args:
        source: see `SourceConfig`.
        consumed: is told the bytes read from disk, for a progress bar against `source_bytes`.

    Raises:
        UserError: missing, unknown, empty, undecodable or damaged data, or a missing text field, with its place.
    """
    count = 0
    for text in _texts(source, consumed):
        if text.strip():
            count += 1
            yield text
    if count == 0:
        raise UserError(f"{source.path} has no text.")


def read_records(source: SourceConfig, consumed: Consumed = lambda _: None) -> Iterator[tuple[str, Any]]:
    """The records of a source, each with its place in words, in a fixed order.

    JSON, CSV, Parquet, Arrow or TFDS; what a record must hold is the caller's to say.

    Raises:
        UserError: missing or damaged data, or a source of another kind.
    """
    kind = source_format(source)
    if kind == "tfds":
        yield from tfds_records(*_tfds(source))
        return

    def records(path: Path, consumed: Consumed) -> Iterator[tuple[str, Any]]:
        format = _format_of(path) if kind == "auto" else kind
        if format not in _RECORD_READERS:
            raise UserError(
                f"{path} has no records with fields: give JSON Lines, a JSON array, CSV, Parquet, Arrow or tfds:…."
            )
        yield from _RECORD_READERS[format](path, consumed, ())

    yield from _read(source, records, consumed)


def source_files(source: SourceConfig) -> list[Path]:
    """The files that a source reads, in order; none for TFDS, which names its own.

    Raises:
        UserError: nothing is there, or nothing of a known format.
    """
    return list(dict.fromkeys(path for part in _parts(source) for path in part.files))


def source_format(source: SourceConfig) -> SourceFormat:
    """The format that the path's scheme or the config names; "auto" where each file's name decides."""
    for prefix, kind in (("tfds:", "tfds"), ("python:", "python")):
        if source.path.startswith(prefix):
            if kind == "python" and source.path.partition("?")[0] != "python:stdlib":
                raise UserError(f"{source.path} is unknown: the only source of this kind is python:stdlib.")
            return cast(SourceFormat, kind)
    return source.format


def _parts(source: SourceConfig) -> list[Part]:
    """The files of a source by the stretches of them that are read."""
    kind = source_format(source)
    if kind == "python":
        return [Part(python_files(_query(source.path)))]
    if kind == "tfds":
        return []
    path = local_path(source.path, "The source")

    if path.is_file():
        return choose_parts(path.parent, [path], source.split)
    if path.is_dir():
        files = _found(source, partial(files_below, path))
        return parts_of_directory(path, files, source.split, _is_record_file)
    if glob.has_magic(str(path)):
        files = _found(source, partial(files_matching, path))
        return choose_parts(Path(os.path.commonpath([file.parent for file in files])), files, source.split)
    raise UserError(f"There is no data at {source.path}: give a file, a directory, a glob, tfds:… or python:stdlib.")


def _found(source: SourceConfig, search: Callable[..., list[Path]]) -> list[Path]:
    """The files that `search` finds and that can be read; at least one."""
    if source_format(source) != "auto":
        files = search()
    else:
        files = search(lambda path: _format_of(path) is not None)
    if not files:
        names = first_few([file.name for file in search()], 5)
        what = f"has no file of a known format, only {names}" if names else "has no files"
        raise UserError(f"{source.path} {what}: give another path, or set the format of the source.")
    return files


def _texts(source: SourceConfig, consumed: Consumed) -> Iterator[str]:
    kind, field = source_format(source), source.text_field
    if kind == "python":
        yield from python_documents(_query(source.path), consumed)
        return
    if kind == "tfds":
        yield from (text_of(record, field, where) for where, record in tfds_records(*_tfds(source)))
        return

    def texts(path: Path, consumed: Consumed) -> Iterator[str]:
        format = _format_of(path) if kind == "auto" else kind
        if format == "text":
            yield from read_text(path, consumed)
        elif format == "array_record":
            yield from read_array_record(path, field, consumed)
        elif format in _RECORD_READERS:
            for where, record in _RECORD_READERS[format](path, consumed, (field,)):
                yield text_of(record, field, where)
        else:
            choices = ", ".join(["text", "array_record", *_RECORD_READERS])
            raise UserError(
                f"The name of {path} does not tell its format: set the source's format to one of {choices}."
            )

    yield from _read(source, texts, consumed)


def _read(source: SourceConfig, reader: Callable[[Path, Consumed], Iterator[T]], consumed: Consumed) -> Iterator[T]:
    """What `reader` gives for each file, within the limits of each part; a part with limits is counted before."""

    def items(files: list[Path], consumed: Consumed) -> Iterator[T]:
        for path in files:
            try:
                yield from reader(path, consumed)
            except OSError as error:  # includes gzip.BadGzipFile
                raise UserError(f"{path} cannot be read ({error.strerror or one_line(error)}).") from error

    for part in _parts(source):
        if part.begin or part.end:
            count = sum(1 for _ in items(part.files, lambda _: None))
            yield from itertools.islice(items(part.files, consumed), *part.limits(count))
        else:
            yield from items(part.files, consumed)


def _format_of(path: Path) -> str | None:
    name = plain_name(path)
    if re.search(r"\.array_?record", name):
        return "array_record"
    suffix = Path(name).suffix
    return "text" if suffix in _TEXT_SUFFIXES else _RECORD_SUFFIXES.get(suffix)


def _is_record_file(path: Path) -> bool:
    return _format_of(path) not in (None, "text")


def _tfds(source: SourceConfig) -> tuple[str, str, str | None]:
    """Name, split and directory of tfds:name?split=…&data_dir=…"""
    query = _query(source.path)
    if source.split and query.get("split", source.split) != source.split:
        raise UserError(f"{source.path} names another split than {source.split!r}: name it in one of the two places.")
    split = source.split or query.get("split", "train")
    return source.path.removeprefix("tfds:").partition("?")[0], split, query.get("data_dir")


def _query(path: str) -> dict[str, str]:
    """The parameters behind the question mark; a plus sign is one, as in train+test, and not a space."""
    return dict(parse_qsl(path.partition("?")[2].replace("+", "%2B")))
