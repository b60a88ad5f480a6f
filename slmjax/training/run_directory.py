"""A workdir belongs to one run: its config is written down first, and another config is refused."""

from __future__ import annotations

import json
from pathlib import Path

from slmjax.errors import UserError, first_few
from slmjax.files import place_file
from slmjax.training.processes import is_primary
from slmjax.training.recipe import Record

CONFIG_FILE = "config.json"


def refuse_another(workdir: Path, record: Record) -> None:
    """UserError where the workdir holds another config's run; nothing is written."""
    path = workdir / CONFIG_FILE
    if not path.is_file():
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON: remove it, or choose another --workdir.") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} is not the config of a run: choose another --workdir.")
    if different := record.differences(stored):
        raise UserError(
            f"{workdir} holds another run, which differs in {first_few(different, 8)}: choose another --workdir, or to "
            f"start from its weights set training.branch_from={workdir}."
        )


def claim(workdir: Path, record: Record) -> None:
    """Write the config into a new workdir, or make sure that the workdir's run is this one. UserError otherwise."""
    refuse_another(workdir, record)
    path = workdir / CONFIG_FILE
    if path.is_file() or not is_primary():
        return
    with place_file(path) as partial:
        partial.write_text(json.dumps(record.config, indent=1) + "\n", encoding="utf-8")
