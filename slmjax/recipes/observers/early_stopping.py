"""Stop when the validation loss no longer falls."""

from __future__ import annotations

import math
from pathlib import Path

from slmjax.training.loop import CHECKPOINTS
from slmjax.training.recipe import End, Evaluation, Position, Watching


class EarlyStopping(Watching):
    """Counts evaluations without a new best. Its position goes into each checkpoint; its report is the best step."""

    name = "early_stopping"
    essential = True  # evaluations decide when the run ends, so a signal must not make it miss one

    def __init__(self, patience: int, delta: float, workdir: Path = Path()):
        """`patience`: evaluations without a best; `delta`: a loss is a new best when it is lower by more than this."""
        self._patience, self._delta, self._workdir = patience, delta, workdir
        self.best: float | None = None
        self.best_step: int | None = None
        self.waited = 0  # evaluations since the best

    @property
    def finished(self) -> bool:
        """Whether it has waited long enough."""
        return self.waited >= self._patience

    @property
    def verdict(self) -> str:  # type: ignore[override]
        """The reason to end the run, once it has waited long enough; "" before."""
        if not self.finished:
            return ""
        if self.best is None:
            return f"Stopped early: {self.waited} evaluations without a finite validation loss."
        return (
            f"Stopped early: {self.waited} evaluations without a validation loss below {self.best:.4f} of step "
            f"{self.best_step}."
        )

    @property
    def keep(self) -> bool:  # type: ignore[override]
        """Whether the last evaluation was the best so far."""
        return self.waited == 0 and self.best is not None

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Take note of the validation loss."""
        if evaluation.step > 0:
            self.see(evaluation.step, evaluation.values["validation_loss"])
        return {}

    def see(self, step: int, loss: float) -> None:
        """Take note of a loss; one that is not finite is never a best."""
        if math.isfinite(loss) and (self.best is None or loss < self.best - self._delta):
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1

    def finish(self, end: End) -> int | None:
        """The best step, once the run has ended."""
        if not end.complete:
            return None
        if self.verdict:
            end.say(self.verdict)
        if self.best_step is None:
            return None
        end.say(
            f"Best: step {self.best_step}, in {self._workdir / CHECKPOINTS / str(self.best_step)}, which is what the "
            "commands load of this run, unless --checkpoint names another."
        )
        return self.best_step

    def position(self) -> Position:
        """The state that `seek` takes; floats come back exactly."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def seek(self, position: Position) -> None:
        """Go on from `position()`."""
        self.best, self.best_step, self.waited = position["best"], position["best_step"], position["waited"]
        if self.best is not None and not math.isfinite(self.best):  # of a version that took NaN for a loss to beat
            self.best, self.best_step = None, None
