"""Learning-rate schedules: pure functions of the step, safe under jit."""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from slmjax.errors import UserError

ScheduleName = Literal["cosine", "constant", "linear", "wsd", "inverse_sqrt"]
DecayShape = Literal["linear", "cosine", "sqrt"]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """What the learning rate does between the first step and the last.

    Every schedule starts with a linear warmup to `peak`: step s of it has the rate peak * (s + 1) / warmup_steps, so
    that the first update is not wasted on a rate of zero. Then

      constant      stays at the peak
      linear        falls in a straight line to final_fraction * peak at the last step
      cosine        falls along a half cosine to final_fraction * peak (Loshchilov & Hutter, arXiv:1608.03983)
      inverse_sqrt  peak * sqrt(warmup_steps / (s + 1)), not below final_fraction * peak (arXiv:1706.03762)
      wsd           stays at the peak, then decays over the last decay_fraction of the steps (MiniCPM, arXiv:2404.06395)

    In the stable phase of `wsd` the rate does not depend on the total number of steps: a checkpoint from there can be
    continued for longer, or branched into its decay at `decay_start`.
    """

    name: ScheduleName = "cosine"
    peak: float = 3e-3
    warmup_steps: int = 0  # 0: warmup_fraction of all steps
    warmup_fraction: float = 0.02  # used where warmup_steps is 0; 0: no warmup. For wsd branching set warmup_steps.
    final_fraction: float = 0.1  # the floor, as a fraction of the peak
    decay_fraction: float = 0.2  # wsd: the share of all steps that decays
    decay_shape: DecayShape = "sqrt"  # wsd: "sqrt" is 1 - sqrt(progress) (Hägele et al., arXiv:2405.18392)
    decay_start: int | None = None  # wsd: the first step of the decay, instead of decay_fraction

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise UserError(f"schedule.name is {self.name!r}; choose one of {', '.join(get_args(ScheduleName))}.")
        if self.decay_shape not in get_args(DecayShape):
            choices = ", ".join(get_args(DecayShape))
            raise UserError(f"schedule.decay_shape is {self.decay_shape!r}; choose one of {choices}.")
        if not self.peak > 0:
            raise UserError(f"schedule.peak is {self.peak}; the peak learning rate must be above 0, such as 3e-3.")
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}; give 0 (use warmup_fraction) or more.")
        for field in ("warmup_fraction", "final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"schedule.{field} is {getattr(self, field)}; it is a fraction between 0 and 1.")
        if self.decay_start is not None and (self.name != "wsd" or self.decay_start < 0):
            raise UserError("schedule.decay_start is a step, 0 or later, of the wsd schedule only; set it to None.")


def make_schedule(config: ScheduleConfig, total_steps: int) -> Schedule:
    """The learning rate (float32 scalar) as a function of the step, counted from 0 to total_steps - 1.

    Raises UserError when the warmup or the decay does not fit into total_steps.
    """
    if total_steps < 1:
        raise UserError(
            f"The run has {total_steps} steps; give it at least 1 (training.steps, tokens or tokens_per_param)."
        )
    warmup = config.warmup_steps or round(config.warmup_fraction * total_steps)
    if warmup > total_steps:
        raise UserError(
            f"schedule.warmup_steps is {warmup} but the run has only {total_steps} steps; lower it, or set it to 0 and "
            "give schedule.warmup_fraction."
        )
    start = _decay_start(config, warmup, total_steps)
    floor = config.final_fraction

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        s = jnp.asarray(step, jnp.float32)
        # 0 at the first step of the decay, 1 at the last step of the run.
        progress = jnp.clip((s - start) / max(total_steps - 1 - start, 1), 0.0, 1.0)
        match config.name:
            case "constant":
                factor = jnp.ones_like(s)
            case "linear":
                factor = floor + (1 - floor) * (1 - progress)
            case "cosine":
                factor = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            case "inverse_sqrt":
                factor = jnp.maximum(jnp.sqrt(max(warmup, 1) / jnp.maximum(s + 1, max(warmup, 1))), floor)
            case "wsd":
                shapes = {
                    "linear": 1 - progress,
                    "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
                    "sqrt": 1 - jnp.sqrt(progress),
                }
                factor = floor + (1 - floor) * shapes[config.decay_shape]
        ramp = jnp.minimum((s + 1) / max(warmup, 1), 1.0)
        return jnp.asarray(config.peak * jnp.where(s < warmup, ramp, factor), jnp.float32)

    return schedule


def _decay_start(config: ScheduleConfig, warmup: int, total_steps: int) -> int:
    """The step at which the rate leaves the peak; the rate of that step is still the peak."""
    if config.name != "wsd":
        return max(warmup - 1, 0)
    if config.decay_start is None:
        return max(total_steps - round(config.decay_fraction * total_steps) - 1, warmup - 1, 0)
    if not warmup <= config.decay_start + 1 <= total_steps:
        raise UserError(
            f"schedule.decay_start is {config.decay_start}; it must lie between the end of the warmup (step {warmup}) "
            f"and the last step ({total_steps - 1}): give the run more steps or an earlier start."
        )
    return config.decay_start
