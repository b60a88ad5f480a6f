"""`Recipe`, the engine's input: what is computed, on which batches, and what is watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from slmjax.training.checkpoints.checkpointer import Restored
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.config import TrainingConfig
from slmjax.training.program import Program
from slmjax.training.state import TrainState

Position = dict[str, Any]  # nested; the leaves are JSON values or arrays


class Batches(Protocol):
    """The training batches, in order."""

    def next(self, state: TrainState) -> tuple[str, Mapping[str, np.ndarray | jax.Array]]:
        """The kind of step (a name of `Program.kinds`) and its batch.

        A batch is a function of the position and the state. Numpy arrays are this process's rows, jax arrays the whole
        batch. `state` has the current parameters, for batches that are written with them; it is donated afterwards.
        """

    def position(self) -> Position:
        """All that the next batch depends on besides the state, a buffer's arrays included."""

    def seek(self, position: Position) -> None:
        """Go on from `position()`."""


@dataclass
class Evaluation:
    """A moment at which a run is looked at."""

    step: int  # updates finished; 0 before the first
    state: TrainState
    final: bool  # whether the budget is spent, or an observer has ended the run
    values: dict[str, float]  # what the observers before this one measured
    say: Callable[[str], None]  # shown below the numbers


@dataclass(frozen=True)
class End:
    """The end of a call of `train`, for observers."""

    step: int
    complete: bool  # the budget is spent or an observer has ended the run; else a signal stopped it
    values: Mapping[str, float]  # of the last step that was reported and the last evaluation
    say: Callable[[str], None]


class Observer(Protocol):
    """Something that is watched at every evaluation; it changes nothing of the training.

    Attributes:
        name: by which its report, its position and its failure are told.
        essential: whether it must see every evaluation at once, even while a signal waits to stop the run.
        verdict: why the run should end, or "" to go on.
        keep: whether the last evaluation is worth a checkpoint of its own.
    """

    name: str
    essential: bool
    verdict: str
    keep: bool

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Numbers for the metrics, by name; every process of a run calls this."""

    def finish(self, end: End) -> Any:
        """A report for `TrainResult.reports`, or None."""

    def position(self) -> Position:
        """The state that it remembers; {} for most."""

    def seek(self, position: Position) -> None:
        """Go on from `position()`."""


class Watching:
    """The parts of `Observer` that most observers leave as they are."""

    essential = False
    verdict = ""
    keep = False

    def finish(self, end: End) -> Any:
        """Give no report."""
        del end

    def position(self) -> Position:
        """Nothing is remembered."""
        return {}

    def seek(self, position: Position) -> None:
        """Nothing to go on from."""
        del position


@dataclass(frozen=True)
class Budget:
    """The length of a run and the cost of a step, for progress, rates and schedules."""

    total_steps: int
    tokens_per_step: int
    flops_per_token: float  # forward and backward, of what is trained
    num_params: int


@dataclass(frozen=True)
class Record:
    """The identity of a run: written into its workdir first, held against it when the run goes on."""

    config: dict[str, Any]  # plain JSON values
    differences: Callable[[dict[str, Any]], list[str]]  # from a stored config: the keys that make this another run


@dataclass(frozen=True)
class Recipe:
    """One training run, as the engine runs it.

    Attributes:
        program: what is computed.
        batches: what it is computed on.
        observers: what is watched, in this order.
        start: makes the state before the first step.
        resume: puts back what a checkpoint does not hold.
        training: when to log, evaluate and stop.
        budget: the length of the run.
        checkpoint: when to save and what to keep.
        record: the run's identity.
        description: what the run says of itself at its start.
        write_files: writes what belongs beside the checkpoints (a tokenizer, what a loader needs) into the workdir.
        branch: where the run starts from another's checkpoint: reads it and says what that means.
        evaluate_first: whether the observers look at the state before the first step.
    """

    program: Program
    batches: Batches
    observers: Sequence[Observer]
    start: Callable[[], TrainState]
    training: TrainingConfig
    budget: Budget
    checkpoint: CheckpointConfig
    record: Record
    description: str
    resume: Callable[[TrainState], TrainState] = lambda state: state
    write_files: Callable[[Path], None] = lambda workdir: None
    branch: Callable[[], tuple[Restored, str]] | None = None
    evaluate_first: bool = False


@dataclass(frozen=True)
class TrainResult:
    """The result of a call of `train`.

    Attributes:
        step: updates finished.
        total_steps: the budget.
        metrics: of the last step that was reported and the last evaluation.
        stopped_by: the signal that stopped the run early, or None.
        reports: what the observers have to say of a run that has ended, by their names.
    """

    step: int
    total_steps: int
    metrics: dict[str, float]
    stopped_by: int | None
    reports: dict[str, Any] = field(default_factory=dict)
