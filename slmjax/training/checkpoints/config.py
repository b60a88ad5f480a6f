"""The config section `checkpoint`: when checkpoints are saved, and which are kept."""

from __future__ import annotations

from dataclasses import dataclass

from slmjax.errors import UserError


@dataclass(frozen=True)
class CheckpointConfig:
    """The rule by which checkpoints are saved and kept; the three kinds of keeping add up."""

    every: int = 1000  # steps between checkpoints
    keep_last: int = 3
    keep_every: int = 0  # also keep the multiples of this many steps; 0: none
    keep_best: int = 0  # also keep this many with the best best_metric; 0: none
    best_metric: str = "validation_loss"  # the lowest is best; of an accuracy or a task's score the highest
    asynchronous: bool = True  # write while training goes on

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep_last < 1:
            raise UserError("checkpoint.every and checkpoint.keep_last must be 1 or more.")
        if self.keep_every < 0 or self.keep_best < 0:
            raise UserError("checkpoint.keep_every and checkpoint.keep_best must be 0 (off) or more.")


def more_is_better(metric: str) -> bool:
    """Whether the higher value of a metric is the better one: of accuracies and tasks' scores, not of losses."""
    name = metric.rpartition("/")[2].partition(",")[0]
    if metric.startswith("task/"):
        return not name.endswith(("perplexity", "bits_per_byte"))
    return name.endswith("accuracy")
