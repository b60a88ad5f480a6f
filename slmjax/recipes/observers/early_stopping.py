"""Stop when the validation loss no longer falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Counts evaluations without a new best; patience 0 never stops. Its state goes into each checkpoint."""

    patience: int
    delta: float  # a loss is a new best when it is lower by more than this
    best: float | None = None
    best_step: int | None = None
    waited: int = 0  # evaluations since the best

    @property
    def finished(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self.patience <= self.waited

    def see(self, step: int, loss: float) -> bool:
        """Take note of an evaluation; True when it is the best so far."""
        if self.best is None or loss < self.best - self.delta:
            self.best, self.best_step, self.waited = loss, step, 0
            return True
        self.waited += 1
        return False

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON can hold it; floats come back exactly."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state()` of a checkpoint; None: from one of a run that did not stop early."""
        if state:
            self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]

    def __str__(self) -> str:
        return (
            f"Stopped early: {self.waited} evaluations without a validation loss below {self.best:.4f} of step "
            f"{self.best_step}."
        )
