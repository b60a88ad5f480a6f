"""A workdir belongs to one run: its config is written down first, and another config is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.training.config import RunConfig

CONFIG_FILE = "config.json"
# Keys that may change when a run is continued: they alter speed, memory, reports or what is kept, not the mathematics.
FREE = (
    "mesh.",
    "checkpoint.",
    "data.num_threads",
    "data.prefetch",
    "data.cache_dir",
    "training.accumulation",
    "training.attention",
    "training.remat",
    "training.scan_unroll",
    "training.log_every",
    "training.eval_every",
    "training.eval_batches",
    "training.profile_at",
    "training.max_skipped",
    "training.early_stopping",
    "training.sample",
    "forgetting.tokens",
)
BUDGET = ("training.steps", "training.tokens", "training.tokens_per_param")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become tuples, so that JSON and dataclasses compare equal."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key (old -> new)` for every key that makes it another run."""
    a, b = flatten(old), flatten(new)
    free: tuple[str, ...] = FREE
    if a.get("schedule.name") == b.get("schedule.name") and a.get("schedule.name") in ("constant", "inverse_sqrt"):
        free = FREE + BUDGET  # the rate does not depend on the total: such a run may simply go on
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and not key.startswith(free))
    return [f"{key} ({a.get(key)!r} -> {b.get(key)!r})" for key in keys]


def refuse_another(workdir: Path, config: RunConfig) -> None:
    """UserError where the workdir holds another config's run; nothing is written."""
    path = workdir / CONFIG_FILE
    if path.is_file():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not readable as JSON: remove it, or choose another --workdir.") from error
        different = differing_keys(old, config.to_dict())
        if different:
            raise UserError(
                f"{workdir} holds another run, which differs in {', '.join(different[:8])}"
                f"{f' and {len(different) - 8} more' if len(different) > 8 else ''}: choose another --workdir, or to "
                f"start from its weights set training.branch_from={workdir}."
            )


def claim(workdir: Path, config: RunConfig) -> None:
    """Write the config into a new workdir, or make sure that the workdir's run is this one. UserError otherwise."""
    refuse_another(workdir, config)
    path = workdir / CONFIG_FILE
    if path.is_file() or jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written ({error.strerror}): choose another.") from error
