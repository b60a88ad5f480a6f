"""Lists of tasks with their shots, a JSON file each in `slmjax/evaluation/presets/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slmjax.errors import UserError
from slmjax.untrusted import Values, read_json

DIRECTORY = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True)
class Asked:
    """A task, group or tag that is to be evaluated, and its examples in each prompt (None: the task's own number)."""

    name: str
    num_fewshot: int | None = None


@dataclass(frozen=True)
class Preset:
    """Tasks that belong together.

    Attributes:
        description: for the help.
        tasks: in order.
        limit: items of each task at most; 0: all.
    """

    name: str
    description: str
    tasks: tuple[Asked, ...]
    limit: int = 0


def preset_names() -> list[str]:
    """The presets that there are."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def read_preset(name: str) -> Preset:
    """The preset of this name. UserError where its file is damaged."""
    path = DIRECTORY / f"{name}.json"
    values = Values(read_json(path), str(path))
    listed = values.get("tasks")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise values.error("tasks", "must be a list of objects")
    entries = [Values(item, str(path)) for item in listed]
    tasks = tuple(Asked(entry.text("task"), entry.integer("num_fewshot", None)) for entry in entries)
    return Preset(name, values.text("description"), tasks, values.integer("limit", 0))


def asked_tasks(names: list[str]) -> tuple[list[Asked], int]:
    """The named tasks, presets taken apart, each once; and the smallest limit of the presets (0: none has one)."""
    known, asked, limits = set(preset_names()), [], []
    for name in names:
        if name not in known:
            asked.append(Asked(name))
            continue
        preset = read_preset(name)
        asked += preset.tasks
        limits += [preset.limit] if preset.limit else []
    if not asked:
        raise UserError("--tasks names no task: give names separated by commas.")
    return list({one.name: one for one in reversed(asked)}.values())[::-1], min(limits, default=0)
