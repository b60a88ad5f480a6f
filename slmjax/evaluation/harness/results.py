"""Results as the harness writes them, so that what reads its files reads ours; and as a table for people."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

from slmjax.files import place_file
from slmjax.quantities import json_text

Results = dict[str, Any]
HEAD = ("task", "shots", "items", "metric", "value", "stderr")
_SECTIONS = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def merge(whole: Results, part: Results) -> None:
    """Add the tasks of `part` to those of `whole`."""
    for section in (*_SECTIONS, "samples", "task_hashes"):
        if section in part:
            whole.setdefault(section, {}).update(part[section])


def environment_facts() -> dict[str, Any]:
    """The versions that numbers may depend on, under the harness's keys."""
    import jax
    import lm_eval

    from slmjax import __version__

    versions = f"slmjax {__version__}, jax {jax.__version__}, Python {platform.python_version()}"
    return {
        "pretty_env_info": f"{versions}, {platform.system()} {platform.machine()}, {jax.default_backend()}",
        "transformers_version": "N/A",
        "lm_eval_version": lm_eval.__version__,
        "slmjax_version": __version__,
    }


def task_hashes(samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """A hash of all documents, prompts and targets of each task: equal where two runs asked the same."""
    return {
        name: hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in found))
        for name, found in samples.items()
    }


def model_facts(model: Any, name: str) -> dict[str, Any]:
    """Facts of a model that the harness writes beside its results' `config`."""
    tokenizer = getattr(model, "tokenizer", None)
    tokens = {
        f"tokenizer_{role}_token": [getattr(tokenizer, f"{role}_token"), str(getattr(tokenizer, f"{role}_token_id"))]
        for role in ("pad", "eos", "bos")
        if hasattr(tokenizer, f"{role}_token")
    }
    ends = {key: getattr(model, key, None) for key in ("eot_token_id", "max_length")}
    return tokens | ends | {"model_source": "slmjax", "model_name": name, "model_name_sanitized": _sanitized(name)}


def text_facts(name: str, text: str | None) -> dict[str, str | None]:
    """A text of the prompts and its hash."""
    return {name: text, f"{name}_sha": None if text is None else hashlib.sha256(text.encode()).hexdigest()}


class ResultFiles:
    """The files of one evaluation: OUT/MODEL/results_DATE.json and samples_TASK_DATE.jsonl as the harness names them.

    An `output` that ends in .json is the file of results itself, with samples_TASK_STEM.jsonl beside it.
    """

    def __init__(self, output: Path, model_name: str):
        date = datetime.now().isoformat().replace(":", "-")
        self._date = date
        if output.suffix == ".json":
            self._date = output.stem  # so that several evaluations can lie beside each other
            self.directory, self.results = output.parent, output
            self.answers = output.with_name(f"{output.stem}.answers.sqlite")
        else:
            self.directory = output / _sanitized(model_name)
            self.results = self.directory / f"results_{date}.json"
            self.answers = self.directory / "answers.sqlite"

    def write(self, results: Results) -> None:
        """Write all results but the samples."""
        plain = {key: value for key, value in results.items() if key != "samples"}
        with place_file(self.results) as partial:
            partial.write_text(to_json(plain, indent=2) + "\n", encoding="utf-8")

    def write_samples(self, samples: dict[str, list[dict[str, Any]]]) -> None:
        """Write a file a task, a line an item and filter."""
        for task, found in samples.items():
            with place_file(self.directory / f"samples_{_sanitized(task)}_{self._date}.jsonl") as partial:
                lines = (to_json(_sample(sample)) + "\n" for sample in found)
                partial.write_text("".join(lines), encoding="utf-8")


def to_json(value: Any, **options: Any) -> str:
    """JSON of results: functions and arrays as the harness writes them, numbers that are not finite as null."""
    plain = json.loads(json.dumps(value, default=handle_non_serializable))
    return json_text(plain, ensure_ascii=False, **options)


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample in the form of the harness's files: arguments by name, answers as text."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(asked)}
        for i, asked in enumerate(sample["arguments"])
    }
    answers = {key: sanitize_list(sample[key]) for key in ("resps", "filtered_resps")}
    return sample | answers | {"arguments": arguments, "target": str(sample["target"])}


def table(results: Results) -> str:
    """A row a metric of each task and group that lines up, members indented below their group."""
    rows: list[Sequence[str]] = [HEAD]
    for name, depth in _in_order(results):
        rows += _rows(name, depth, results)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _in_order(results: Results) -> Iterator[tuple[str, int]]:
    """Names and their depth, a group before its members."""
    members = results.get("group_subtasks", {})
    inside = {child for children in members.values() for child in children}

    def walk(name: str, depth: int) -> Iterator[tuple[str, int]]:
        yield name, depth
        for child in members.get(name, ()):
            yield from walk(child, depth + 1)

    for name in results["results"]:
        if name not in inside:
            yield from walk(name, 0)


def _rows(name: str, depth: int, results: Results) -> Iterator[Sequence[str]]:
    scores = results["results"].get(name, {})
    shots, count = results["n-shot"].get(name), scores.get("sample_len")
    first = ("  " * depth + name, "" if shots is None else str(shots), "" if count is None else f"{count:,}")
    metrics = [key for key in scores if "," in key and not key.partition(",")[0].endswith("_stderr")]
    if not metrics:
        yield (*first, "", "", "")
    for number, key in enumerate(metrics):
        metric, _, filter = key.partition(",")
        error = scores.get(f"{metric}_stderr,{filter}")
        label = metric if filter == "none" else f"{metric} ({filter})"
        yield (*(first if not number else ("", "", "")), label, _number(scores[key]), _number(error))


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""


def _sanitized(name: str) -> str:
    """A name as the harness makes a file's of it."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)
