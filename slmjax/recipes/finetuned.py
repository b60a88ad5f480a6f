"""A fine-tuning run's config: the layers that it adds, what it trains, and how it is described to a loader."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmjax.files import local_path
from slmjax.inference import finetuned
from slmjax.inference.description import Description
from slmjax.peft.method import Encode
from slmjax.recipes.config import RunConfig


def describe_run(
    config: RunConfig,
    stop_ids: Sequence[int] = (),
    workdir: Path | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Description:
    """The description of a run for those who load it; its `write(workdir)` makes the run's slmjax.json.

    config: with the base's fingerprint and new layers filled in. stop_ids, generation: those of the base, for
    conversations. workdir: of the run, from where its base is found again.
    """
    base = config.peft.base
    places: list[str] = []
    if base and workdir is not None and (place := local_path(base, "peft.base")).exists():
        places = [os.path.abspath(place), os.path.relpath(place.resolve(), workdir.resolve())]
    early = bool(config.training.early_stopping)
    return Description(
        kind="run",
        model=config.model,
        peft=config.peft,
        averaged=bool(config.training.ema_decay),
        add_bos=config.data.add_bos,
        stop_ids=tuple(stop_ids),
        generation=dict(generation or {}),
        total_steps=config.total_steps,
        base_places=tuple(places),
        loaded="best" if early else "latest",
        best_metric="validation_loss" if early else config.checkpoint.best_metric,
    )


def expanded(config: RunConfig, base: Any) -> tuple[RunConfig, Any]:
    """The run and its base with `peft.expand` new layers, which are trained (besides what `peft.freeze` trains).

    The config may be that of the base's network, as a user writes it, or that of the larger one, as a run keeps it.
    """
    config = expanded_config(config)
    return config, finetuned.expand_base(config.model, config.peft, base)


def expanded_config(config: RunConfig) -> RunConfig:
    """The config of a run with `peft.expand` new layers in its model; as it is where they are there already."""
    model, peft = finetuned.expand_config(config.model, config.peft)
    return dataclasses.replace(config, model=model, peft=peft)


def count_trained(config: RunConfig, encode: Encode | None = None) -> tuple[int, int]:
    """(trained numbers, trained and frozen ones) of a run, from shapes alone; encode: as in `make_method`."""
    return finetuned.count_trained(config.model, config.peft, encode)
