"""Losses of a network at one moment: on the validation split and on general text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from slmjax.data.packing import Row, empty_row, stack_rows
from slmjax.recipes.corpus import Corpus
from slmjax.training.program import Program, to_devices
from slmjax.training.state import TrainState


def evaluate(
    program: Program,
    state: TrainState,
    corpus: Corpus,
    rows: list[int],
    general: list[Row] | None = None,
    *,
    of_base: bool = False,
) -> dict[str, float]:
    """Loss (nats a token), bits per byte and accuracy on the validation split, of the averaged weights if there are.

    general: rows of general text, for `general_loss`. of_base: of the network as it began, at the start of a run.
    """
    params, frozen, step = state.params if state.ema is None else state.ema, state.frozen, program.eval_step
    if of_base and program.method.changes_at_start:
        step = program.base_eval_step
    result: dict[str, float] = {}
    if corpus.validation:
        sums = _sums(program, step, params, frozen, corpus.validation_batches(program.config, rows))
        tokens = max(sums["tokens"], 1.0)
        result = {
            "validation_loss": sums["nll"] / tokens,
            "validation_bits_per_byte": sums["nll"] / (np.log(2.0) * max(sums["bytes"], 1.0)),
            "validation_accuracy": sums["correct"] / tokens,
        }
    if general:
        sums = _sums(program, step, params, frozen, _batches(program, general, rows))
        result["general_loss"] = sums["nll"] / max(sums["tokens"], 1.0)
    return result


def _sums(program: Program, step: Any, params: Any, frozen: Any, batches: Iterable[Row]) -> dict[str, float]:
    sums = dict.fromkeys(("nll", "correct", "tokens", "bytes"), 0.0)
    for batch in batches:
        for name, value in jax.device_get(step(params, frozen, to_devices(batch, program))).items():
            sums[name] += float(value)
    return sums


def _batches(program: Program, general: list[Row], rows: list[int]) -> Iterator[Row]:
    """The rows in batches of the run's size, so that nothing is compiled for them; the last is filled up."""
    B, T = program.batch["inputs"].shape
    for first in range(0, len(general), B):
        numbers = [first + row for row in rows]
        yield stack_rows(general[i] if i < len(general) else empty_row(T) for i in numbers)
