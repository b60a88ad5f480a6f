"""Starting from another run's checkpoint."""

from __future__ import annotations

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.training.checkpoints.checkpointer import Checkpointer, Restored
from slmjax.training.config import run_config
from slmjax.training.program import Program
from slmjax.training.schedules import make_schedule
from slmjax.training.state import without_base


def restore_branch(program: Program, folder: str) -> Restored:
    """The state of the other run that this one starts from; `folder` of its workdir has its checkpoints."""
    t = program.config.training
    source = Checkpointer(local_path(t.branch_from, "training.branch_from") / folder)
    step = source.latest_step() if t.branch_step < 0 else t.branch_step
    if step is None:
        raise UserError(f"training.branch_from={t.branch_from} has no checkpoint to start from.")
    if step >= program.config.total_steps:
        raise UserError(
            f"training.branch_from={t.branch_from} starts at step {step}, but this run ends at step "
            f"{program.config.total_steps}: raise its budget or choose an earlier training.branch_step."
        )
    return source.restore(step, without_base(program.state))


def rates_there(program: Program, restored: Restored) -> str:
    """The learning rate on both sides of a branch: a jump there is seldom meant."""
    other = run_config(restored.run_config)
    accepted = restored.step - int(restored.state.skipped)
    before = float(make_schedule(other.schedule, other.total_steps)(accepted - 1))
    after = float(program.schedule(accepted))
    return f" of {program.config.training.branch_from}: its learning rate was {before:.4g}, here it is {after:.4g}"
