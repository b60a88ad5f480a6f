"""Starting from another run's checkpoint (of a WSD schedule: from its stable phase)."""

from __future__ import annotations

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.recipes.config import RunConfig, run_config
from slmjax.training.checkpoints.checkpointer import Checkpointer, Restored
from slmjax.training.loop import CHECKPOINTS
from slmjax.training.program import Program
from slmjax.training.schedules import make_schedule


def restore_branch(config: RunConfig, program: Program) -> tuple[Restored, str]:
    """The state of the other run that this one starts from, and what to say of it."""
    t = config.training
    source = Checkpointer(local_path(t.branch_from, "training.branch_from") / CHECKPOINTS)
    step = source.latest_step() if t.branch_step < 0 else t.branch_step
    if step is None:
        raise UserError(f"training.branch_from={t.branch_from} has no checkpoint to start from: name another run.")
    if step >= config.total_steps:
        raise UserError(
            f"training.branch_from={t.branch_from} starts at step {step}, but this run ends at step "
            f"{config.total_steps}: raise its budget or choose an earlier training.branch_step."
        )
    restored = source.restore(step, program.stored)
    restored.position["batches"].pop("data", None)  # a branch may go on with other data
    return restored, f"Continuing after step {step} of {t.branch_from}{_rates(program, restored)}."


def _rates(program: Program, restored: Restored) -> str:
    """The learning rate on both sides of a branch: a jump there is seldom meant."""
    other = run_config(restored.run_config)
    accepted = restored.step - int(restored.state.skipped)
    after = float(program.schedule(accepted))
    if other.training.epochs:  # how long it was depends on its data
        return f": the learning rate here is {after:.4g}"
    before = float(make_schedule(other.schedule, other.total_steps)(accepted - 1))
    return f": its learning rate was {before:.4g}, here it is {after:.4g}"
