"""The identity of a run: its stored config against the one that would continue it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from slmjax.recipes.config import RunConfig, run_config
from slmjax.training.config import BUDGETS
from slmjax.training.loop import CHECKPOINTS
from slmjax.training.recipe import Record
from slmjax.training.run_directory import CONFIG_FILE
from slmjax.untrusted import read_json

# Keys that may change when a run is continued: they alter speed, memory, reports or what is kept, not the mathematics.
# What ends in a dot is a section.
FREE = (
    "mesh.",
    "checkpoint.",
    "data.num_threads",
    "data.prefetch",
    "data.cache_dir",
    "data.on_change",
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
    "training.early_stopping_delta",
    "training.samples",
    "training.sample_prompts",
    "training.sample_tokens",
    "training.tasks.",
    "forgetting.tokens",
    "forgetting.tasks",
)
# With these, after the warmup, the rate does not depend on the total, so such a run may simply go on.
ENDLESS = ("constant", "inverse_sqrt")


def record(config: RunConfig) -> Record:
    """The identity of a run for the engine."""
    return Record(config.to_dict(), lambda stored: differing_keys(run_config(stored), config))


def begun_in(workdir: Path) -> Path | None:
    """The workdir, where a run has saved a checkpoint in it; else None."""
    checkpoints = workdir / CHECKPOINTS
    begun = checkpoints.is_dir() and any(path.name.isdecimal() for path in checkpoints.iterdir())
    return workdir if begun and (workdir / CONFIG_FILE).is_file() else None


def with_begun_warmup(config: RunConfig, begun: Path | None) -> RunConfig:
    """The config with the warmup that the run began with, which another budget must not stretch over what was trained.

    config: its total steps are known.
    """
    if begun is None or config.schedule.warmup_steps or config.schedule.name not in ENDLESS:
        return config
    before = run_config(read_json(begun / CONFIG_FILE))
    before = dataclasses.replace(before, rows_per_epoch=config.rows_per_epoch)
    if before.training.epochs and config.rows_per_epoch is None:
        return config
    return dataclasses.replace(config, begun_steps=before.total_steps)


def differing_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """`key (old -> new)` for every key that makes it another run."""
    a, b = _flatten(old.to_dict()), _flatten(new.to_dict())
    free = set(FREE)
    if old.schedule.name == new.schedule.name and new.schedule.name in ENDLESS:
        free |= {f"training.{name}" for name in BUDGETS}
    if a["peft.fingerprint"] and a["peft.fingerprint"] == b["peft.fingerprint"]:
        free.add("peft.base")  # the same parameters, at another place
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and not _is_free(key, free))
    return [f"{key} ({a.get(key)!r} -> {b.get(key)!r})" for key in keys]


def _is_free(key: str, free: set[str]) -> bool:
    return key in free or any(key.startswith(name) for name in free if name.endswith("."))


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become tuples, so that JSON and dataclasses compare equal."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat
