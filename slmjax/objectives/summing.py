"""Losses of many batches as one, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from slmjax.objectives.loss import Loss, Mean


def bits_per_byte(nats: Any, num_bytes: Any) -> Mean:
    """The negative log-likelihood of a text over the bytes of its UTF-8: nats / (log(2) * num_bytes)."""
    return Mean(nats, num_bytes, unit=math.log(2.0))


def sum_losses(step: Callable[[Any], Loss], batches: Iterable[Any]) -> Loss:
    """The loss of all batches together, with Python floats for arrays; without batches its metrics are empty.

    Args:
        step: batch -> Loss, as a rule jitted.
        batches: what `step` takes.
    """
    total = Loss(0.0, 0.0, {})  # type: ignore[arg-type]
    for batch in batches:
        loss = jax.tree.map(float, jax.device_get(step(batch)))
        metrics = jax.tree.map(lambda a, b: a + b, total.metrics, loss.metrics) if total.metrics else loss.metrics
        total = Loss(total.sum + loss.sum, total.weight + loss.weight, metrics)
    return total
