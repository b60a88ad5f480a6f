"""Tasks by name: how each is evaluated, and what it gives to fine-tune on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.evaluation.tasks.pubmedqa import evaluate_pubmedqa, read_pubmedqa
from slmjax.evaluation.tasks.text_to_sql.records import SPLITS, write_records
from slmjax.evaluation.tasks.text_to_sql.task import evaluate_text_to_sql, training_records
from slmjax.inference.language_model import LanguageModel


@dataclass(frozen=True)
class Task:
    """`evaluate(lm, directory, ...)` gives numbers and `predictions`, `records(directory, split)` prompts with their
    completions and the questions that were left out."""

    evaluate: Callable[..., dict[str, Any]]
    records: Callable[[str | Path, str], tuple[list[dict[str, str]], list[str]]]
    splits: tuple[str, ...]


TASKS = {
    "text2sql": Task(evaluate_text_to_sql, training_records, SPLITS),
    "pubmedqa": Task(
        evaluate_pubmedqa, lambda directory, split: (read_pubmedqa(directory, split), []), ("train", "test")
    ),
}


def check_tasks(names: Sequence[str]) -> None:
    """UserError for a name that no task has."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"There is no task {name!r}; there are {', '.join(TASKS)}.")


def evaluate_tasks(
    lm: LanguageModel,
    names: Sequence[str],
    directory: str | Path,
    *,
    limit: int = 0,
    num_fewshot: int = 0,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Each task's result by its name; `predictions` in it is what the model answered. Data lie in `directory`."""
    check_tasks(names)
    settings: dict[str, Any] = {"limit": limit, "num_fewshot": num_fewshot, "progress": progress}
    return {name: TASKS[name].evaluate(lm, directory, **settings) for name in names}


def write_task_records(name: str, directory: str | Path, output: Path) -> dict[str, tuple[int, list[str]]]:
    """Write SPLIT.jsonl, a {"prompt", "completion"} a line; how many there are by split, and what was left out."""
    check_tasks([name])
    task = TASKS[name]
    found = {split: task.records(directory, split) for split in task.splits}
    output.mkdir(parents=True, exist_ok=True)
    return {
        split: (write_records(records, output / f"{split}.jsonl"), left_out)
        for split, (records, left_out) in found.items()
    }
