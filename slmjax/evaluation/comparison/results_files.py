"""Results and samples in lm-evaluation-harness's files, ours or its own, as a comparison needs them.

Another's files: names, sizes and types are checked, and a mistake in them is one sentence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmjax.errors import UserError, first_few, shown
from slmjax.files import local_path
from slmjax.untrusted import MAX_NAMES, MAX_NUMBER, Values, inside, parse_json, read_json

MAX_LINE_BYTES = 1 << 25  # of a samples file: a document, its prompts with shots, and its answers
MAX_ITEMS = 1 << 20  # of a task; MMLU has 14,042
MAX_METRICS = 64  # of an item
MAX_VALUES = 1 << 12  # of a metric of an item: ifeval has one per instruction

# Fields of a document that name what several items are asked about, by which they are not independent.
CLUSTER_FIELDS = ("passage_id", "passage", "article", "story", "support", "context", "subject", "category")

Value = float | tuple[float, ...] | None  # None: of a kind that says nothing item by item


@dataclass(frozen=True)
class Item:
    """One item of a task under one filter.

    Attributes:
        hashes: of its document, its first prompt and its target.
        cluster: what it shares with other items of the task, such as its passage; "" for nothing.
        values: of its metrics.
    """

    hashes: tuple[str, str, str]
    cluster: str
    values: dict[str, Value]


@dataclass(frozen=True)
class ResultsFile:
    """A file of results.

    Attributes:
        path: of the file.
        model: the name of the model, "" where the file has none.
        scores: task (or group) -> "metric,filter" -> score.
        higher_is_better: task -> metric -> whether it is.
        groups: group -> its tasks, for groups that have a score.
        shots: task -> examples in each prompt.
        versions: task -> its version, as text.
    """

    path: Path
    model: str
    scores: dict[str, dict[str, float]]
    higher_is_better: dict[str, dict[str, bool]]
    groups: dict[str, list[str]]
    shots: dict[str, int]
    versions: dict[str, str]
    hashes: dict[str, str] = field(repr=False)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, without groups."""
        return [name for name in self.scores if name not in self.groups]


def read_results(path: str | Path) -> ResultsFile:
    """The results in a JSON file of lm-evaluation-harness's form.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = local_path(path, "The file of results")
    if not path.is_file():
        raise UserError(f"There are no results at {path}: give the JSON file that an evaluation has written.")
    values = Values(read_json(path), str(path))
    if not values.table("results"):
        raise UserError(f"{path} holds no results of tasks: give the JSON file that slmjax evaluate --tasks wrote.")
    tables = {name: _table(values, "results", name) for name in _names(values, "results")}
    subtasks = values.table("group_subtasks")
    groups = {
        name: Values(subtasks, f"{path}: group_subtasks").names(name) for name in subtasks if subtasks[name] != []
    }
    shots = Values(values.table("n-shot"), f"{path}: n-shot")
    hashes = Values(values.table("task_hashes"), f"{path}: task_hashes")
    return ResultsFile(
        path,
        values.text("model_name", ""),
        {name: _numbers(table) for name, table in tables.items()},
        {
            name: {key: value for key, value in _table(values, "higher_is_better", name).items() if value is not None}
            for name in _names(values, "higher_is_better")
        },
        {name: children for name, children in groups.items() if name in tables},
        {name: shots.integer(name, 0) for name in _names(values, "n-shot")},
        {name: shown(version) for name, version in values.table("versions").items()},
        {name: hashes.text(name, "") for name in _names(values, "task_hashes")},
    )


def read_items(results: ResultsFile, task: str) -> dict[str, dict[int, Item]]:
    """The items of a task from the samples file beside its results: filter -> doc_id -> item.

    Raises:
        UserError: there is no such file, it does not belong to these results, or it is damaged.
    """
    path = _samples_file(results, task)
    found: dict[str, dict[int, Item]] = {}
    digest = hashlib.sha256()
    for where, line in _lines(path):
        doc_id = line.integer("doc_id", most=1 << 40)
        hashes = (line.text("doc_hash"), line.text("prompt_hash"), line.text("target_hash"))
        digest.update("".join(hashes).encode())
        names = line.names("metrics", [])
        if len(names) > MAX_METRICS:
            raise UserError(f"{where} has {len(names)} metrics, more than a task has: give the file as it was written.")
        values = {name: _value(line, name) for name in names}
        items = found.setdefault(line.text("filter", "none"), {})
        if doc_id in items:
            raise UserError(f"{where} gives item {doc_id} again: give the file of one run.")
        items[doc_id] = Item(hashes, _cluster(line), values)
    if not found:
        raise UserError(f"{path} has no items: evaluate again.")
    expected = results.hashes.get(task)
    if expected and expected != digest.hexdigest():
        raise UserError(
            f"{path} is not of the run of {results.path.name} (the hash of its items is another): keep each run's "
            "files together in a directory of its own."
        )
    return found


def _names(values: Values, key: str) -> list[str]:
    names = list(values.table(key))
    if len(names) > MAX_NAMES:
        raise UserError(f"{values.where}: {key} has {len(names):,} names, more than an evaluation has tasks.")
    return names


def _table(values: Values, key: str, name: str) -> dict[str, Any]:
    return Values(values.table(key), f"{values.where}: {key}").table(name)


def _numbers(table: dict[str, Any]) -> dict[str, float]:
    """The scores of a task; neither standard errors nor what is not a finite number."""
    return {
        key: float(value)
        for key, value in table.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float) and abs(value) <= MAX_NUMBER
    }


def _samples_file(results: ResultsFile, task: str) -> Path:
    """samples_TASK_DATE.jsonl beside results_DATE.json; where no date fits, the only file of the task there."""
    directory, stem = results.path.parent, results.path.stem
    prefix = "samples_" + re.sub(r"[\"<>:/|\\?*\[\]]+", "__", task)  # as the harness makes names of files
    for ending in (stem.rpartition("_")[2], stem):
        if (directory / f"{prefix}_{ending}.jsonl").is_file():
            return inside(directory, f"{prefix}_{ending}.jsonl")
    dated = re.compile(rf"{re.escape(prefix)}_\d{{4}}-\d\d-\d\dT[\d.-]+\.jsonl")
    names = [path.name for path in sorted(directory.glob(f"{prefix}_*.jsonl")) if dated.fullmatch(path.name)]
    if not names:
        raise UserError(
            f"There is no {prefix}_{stem.rpartition('_')[2]}.jsonl beside {results.path}, and a comparison needs the "
            "files of all items: evaluate again with --samples."
        )
    if len(names) > 1:
        raise UserError(
            f"{len(names)} files beside {results.path} may be its samples of {task} ({first_few(names)}): keep each "
            "run's files together in a directory of its own."
        )
    return inside(directory, names[0])


def _lines(path: Path) -> Iterator[tuple[str, Values]]:
    """The objects of a samples file, each with its place in words."""
    with open(path, "rb") as file:
        for number in range(1, MAX_ITEMS + 2):
            where = f"{path}, line {number}"
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{where} has more than {MAX_LINE_BYTES:,} bytes, which is more than an item can need.")
            try:
                value = parse_json(line.decode("utf-8"), path)
            except (UnicodeDecodeError, UserError) as error:
                raise UserError(f"{where} is not readable as JSON: the file is damaged or incomplete.") from error
            if not isinstance(value, dict):
                raise UserError(f"{where} is {shown(value)}, not an item: give a samples file of the harness.")
            yield where, Values(value, where)
    raise UserError(f"{path} has more than {MAX_ITEMS:,} items, which is more than a task has.")


def _value(line: Values, name: str) -> Value:
    """A metric's value as numbers; None where it is of a kind that only all items together give a score (F1)."""
    value = line.get(name)
    listed = value if isinstance(value, list) else []
    if 1 <= len(listed) <= MAX_VALUES and all(isinstance(v, bool | int | float) for v in listed):
        return tuple(_finite(line, name, v) for v in listed)
    if isinstance(value, bool | int | float):
        return _finite(line, name, value)
    if value is None:
        raise UserError(f"{line.where}: {name} is not a number: the model's output was not finite, or the file is cut.")
    return None


def _finite(line: Values, name: str, value: float) -> float:
    if not abs(value) <= MAX_NUMBER:  # also NaN
        raise UserError(f"{line.where}: {name} is {shown(value)}: a result that is not finite cannot be compared.")
    return float(value)


def _cluster(line: Values) -> str:
    """A digest of the first field of the document that several items may share."""
    doc = line.get("doc")
    if isinstance(doc, dict):
        for name in CLUSTER_FIELDS:
            value = doc.get(name)
            if isinstance(value, str | int) and str(value).strip():
                return hashlib.sha256(f"{name}\0{value}".encode("utf-8", "replace")).hexdigest()[:16]
    return ""
