"""The checkpoints that stay: the newest, regular ones, and the best by a metric."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from slmjax.training.checkpoints.config import CheckpointConfig, more_is_better


def steps_to_keep(scores: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """The steps that stay, given each one's best_metric (None or not finite: not evaluated)."""
    steps = sorted(scores)
    keep = set(steps[-config.keep_last :])
    if config.keep_every:
        keep |= {step for step in steps if step % config.keep_every == 0}
    return keep | set(best_first(scores, config.best_metric)[: config.keep_best])


def best_first(scores: Mapping[int, float | None], metric: str) -> list[int]:
    """The steps that have a finite score in `metric`, the best first; of equals the later one."""
    sign = -1 if more_is_better(metric) else 1
    evaluated = [(sign * score, -step) for step, score in scores.items() if score is not None and math.isfinite(score)]
    return [-negative for _, negative in sorted(evaluated)]


@dataclasses.dataclass
class Retention:
    """`steps_to_keep` as one of Orbax's preservation policies; it deletes only after the new step is whole on disk."""

    scores: dict[int, float | None]
    config: CheckpointConfig

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Whether each of the checkpoints stays; the last of them is the one just saved."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        keep = steps_to_keep({step: self.scores.get(step) for step in steps}, self.config)
        return [step in keep or step == steps[-1] for step in steps]
