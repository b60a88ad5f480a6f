"""Learning-rate schedules: pure functions of the step, safe under jit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.training.config import ScheduleConfig

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


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
