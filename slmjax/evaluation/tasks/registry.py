"""Tasks by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmjax.errors import UserError, did_you_mean
from slmjax.evaluation.tasks.pubmedqa import PubMedQA
from slmjax.evaluation.tasks.task import Settings, Task, check_settings
from slmjax.evaluation.tasks.text_to_sql.records import write_records
from slmjax.evaluation.tasks.text_to_sql.task import TextToSQL
from slmjax.inference.language_model import LanguageModel

TASKS: dict[str, Task] = {task.name: task for task in (TextToSQL(), PubMedQA())}


def check_tasks(names: Sequence[str]) -> None:
    """UserError for a name that no task has."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"There is no task {name!r}: {did_you_mean(name, TASKS)}")


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
    settings = Settings(limit=limit, num_fewshot=num_fewshot, progress=progress)
    for name in names:
        check_settings(TASKS[name], settings)
    return {name: TASKS[name].evaluate(lm, directory, settings).to_dict() for name in names}


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
