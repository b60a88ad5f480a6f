"""Upstream's data files in a local directory: found by the names that people give them, read into data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from slmjax.data.reading.compression import plain_name
from slmjax.data.reading.files import files_below
from slmjax.data.reading.json_records import json_records
from slmjax.data.reading.tables import arrow_records, csv_records, parquet_records
from slmjax.errors import UserError, one_line

Record = dict[str, Any]
Reader = Callable[[Path], Iterator[tuple[str, Any]]]

READERS: dict[str, Reader] = {  # in the order of preference, where a split is there in several forms
    ".parquet": parquet_records,
    ".arrow": arrow_records,
    ".jsonl": json_records,
    ".ndjson": json_records,
    ".json": json_records,
    ".csv": csv_records,
    ".tsv": csv_records,
}
ALIASES = {  # other names of a split, in the order in which they are looked for
    "train": ("training",),
    "validation": ("valid", "val", "dev"),
    "dev": ("validation", "valid", "val"),
    "test": ("testing",),
}
_GENERIC = ("", "default", "main", "all", "plain_text")  # configurations whose names say nothing of the data
_MAX_FILES = 1 << 16
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{16})?")


class DataFolder:
    """A directory of data files, each found by what its path says: a task or data set, and a split.

    Signs between the words of a path, case, and a directory `data` do not count: `arc_easy.test.jsonl`,
    `ai2_arc/ARC-Easy/test-00000-of-00001.parquet` and `ARC-Easy_test.csv.gz` are all found. The name of the directory
    itself counts where it is needed: it may be one data set's.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._files: dict[str, list[Path]] = {}
        self._configs: dict[Path, str] = {}  # of files that are named after their data set alone, which one was read
        found = files_below(directory, _is_data)
        if len(found) > _MAX_FILES:
            raise UserError(f"{directory} has {len(found):,} data files: give the directory of the tasks' data alone.")
        for path in found:
            self._files.setdefault(_words(f"{path.relative_to(directory).parent}/{_split_name(path)}"), []).append(path)

    def find(self, task: str, dataset: str, config: str, split: str) -> list[Path]:
        """The files of a split, several where it is sharded; none where there is no such split.

        Looked for by the task's name, by DATASET and CONFIG, by CONFIG alone, and by DATASET alone.

        Raises:
            UserError: shards are missing, or a file that is named after DATASET alone would serve two configurations.
        """
        base = dataset.rpartition("/")[2]
        owners = [task, f"{dataset}/{config}", f"{base}/{config}", *([] if config in _GENERIC else [config])]
        here = _words(self.directory.resolve().name)
        for name in (split, *ALIASES.get(split, ())):
            for owner in (*owners, dataset, base):
                words = _words(f"{owner}/{name}")
                paths = self._files.get(words) or self._files.get(words.removeprefix(f"{here}/"))
                if paths is None:
                    continue
                if owner not in owners and self._configs.setdefault(paths[0], config) != config:
                    raise UserError(
                        f"{paths[0]} is named after {base} alone, of which {self._configs[paths[0]]} and {config} are "
                        f"asked for: rename it, as in {task}.{split}{_suffix(paths[0])}."
                    )
                return _preferred(paths)
        return []


def _preferred(paths: list[Path]) -> list[Path]:
    """The files of the preferred form among those of a split: one, or every shard."""
    best = min(_form(path) for path in paths)
    paths = sorted(path for path in paths if _form(path) == best)
    shard = _SHARD.fullmatch(_stem(paths[0]))
    if shard is None:
        return paths[:1]
    if len(paths) < int(shard["count"]):
        raise UserError(
            f"{paths[0].parent} has {len(paths)} of the {int(shard['count'])} files {shard['name']}-*: fetch the rest."
        )
    return paths


def read_dataset(paths: list[Path], adapt: Callable[[Record], Record] = lambda record: record) -> datasets.Dataset:
    """The records of files, each through `adapt`, as a data set in memory.

    Raises:
        UserError: damage, no record, a record that is no object or lacks a field that the first one has, or values of
            different types in a field.
    """
    records: list[Record] = []
    for path in paths:
        for where, record in READERS[_suffix(path)](path):
            if not isinstance(record, dict):
                raise UserError(f"{where} is a JSON {type(record).__name__}, not an object with fields.")
            record = adapt(record)
            if records and (missing := records[0].keys() - record.keys()):
                raise UserError(f"{where} has no field {min(missing)!r}, which the first record has: add it, or null.")
            records.append(record)
    if not records:
        raise UserError(f"{paths[0]} has no records: it is empty.")
    if _suffix(paths[0]) in (".csv", ".tsv"):
        records = _with_numbers(records)
    try:
        return datasets.Dataset.from_list(records)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{paths[0]} does not fit into a table ({one_line(error)}): give each field one type."
        ) from error


def _with_numbers(records: list[Record]) -> list[Record]:
    """Records of CSV with the columns of numbers as numbers, as the readers of the hub's CSV files have them."""
    kinds: dict[str, type] = {}
    for name in records[0]:
        values = [record[name] for record in records]
        if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in values):
            kinds[name] = int
        elif all(re.fullmatch(r"-?\d+\.\d+", value) for value in values):
            kinds[name] = float
    return [{name: kinds.get(name, str)(value) for name, value in record.items()} for record in records]


def _is_data(path: Path) -> bool:
    return _suffix(path) in READERS


def _suffix(path: Path) -> str:
    return Path(plain_name(path)).suffix


def _stem(path: Path) -> str:
    return Path(plain_name(path)).stem


def _split_name(path: Path) -> str:
    """The name without suffixes and number of a shard."""
    shard = _SHARD.fullmatch(_stem(path))
    return shard["name"] if shard else _stem(path)


def _form(path: Path) -> int:
    return list(READERS).index(_suffix(path))


def _words(text: str) -> str:
    """The words of a path, in lower case between slashes."""
    parts = [part for part in text.lower().split("/") if part != "data"]
    return "/".join(word for word in re.split(r"[^a-z0-9]+", "/".join(parts)) if word)
