"""Schedules: what holds for all of them, then the WSD branching property, then examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.training.schedules import ScheduleConfig, make_schedule

NAMES = ("cosine", "constant", "linear", "wsd", "inverse_sqrt")


def rates(config: ScheduleConfig, steps: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(make_schedule(config, steps)))(jnp.arange(steps)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997])
def test_every_rate_lies_between_zero_and_the_peak(name, steps):
    values = rates(ScheduleConfig(name=name, peak=2.0, warmup_fraction=0.1), steps)
    assert values.dtype == np.float32
    assert np.isfinite(values).all() and (values > 0).all() and (values <= 2.0).all()
    np.testing.assert_allclose(values.max(), 2.0, rtol=1e-6)  # the peak is reached, however short the run


@pytest.mark.parametrize("name", NAMES)
def test_warmup_is_linear_from_a_nonzero_rate_and_never_rises_after(name):
    values = rates(ScheduleConfig(name=name, peak=1.0, warmup_steps=20), 200)
    np.testing.assert_allclose(values[:20], np.arange(1, 21) / 20, rtol=1e-6)
    assert (np.diff(values[19:]) <= 1e-7).all()


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_decaying_schedules_end_on_the_floor(name, final):
    values = rates(ScheduleConfig(name=name, peak=3.0, warmup_steps=5, final_fraction=final), 100)
    np.testing.assert_allclose(values[-1], 3.0 * final, atol=1e-6)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_wsd_does_not_know_the_budget_before_its_decay(shape):
    """So a stable-phase checkpoint can be continued for longer, or branched into its decay, without a jump."""
    config = ScheduleConfig(name="wsd", warmup_steps=10, decay_fraction=0.2, decay_shape=shape)
    short, long = rates(config, 100), rates(config, 1000)
    np.testing.assert_array_equal(short[:80], long[:80])
    assert short[80] < long[80]
    branched = rates(ScheduleConfig(name="wsd", warmup_steps=10, decay_start=60, decay_shape=shape), 90)
    np.testing.assert_array_equal(branched[:61], long[:61])
    assert (np.diff(branched[60:]) < 0).all()
    np.testing.assert_allclose(branched[-1], config.peak * config.final_fraction, rtol=1e-5)


def test_wsd_decays_over_its_share_of_the_steps():
    values = rates(ScheduleConfig(name="wsd", peak=1.0, warmup_steps=0, warmup_fraction=0, decay_fraction=0.25), 100)
    assert (values == 1.0).sum() == 75


def test_examples():
    cosine = rates(ScheduleConfig(peak=1.0, warmup_steps=1, final_fraction=0.2), 101)
    np.testing.assert_allclose(cosine[50], 0.2 + 0.8 * 0.5, rtol=1e-5)  # half way: the mean of peak and floor
    sqrt = rates(ScheduleConfig(name="inverse_sqrt", peak=1.0, warmup_steps=4, final_fraction=0.0), 100)
    np.testing.assert_allclose(sqrt[15], 0.5, rtol=1e-6)
    wsd = rates(ScheduleConfig(name="wsd", peak=1.0, warmup_steps=1, decay_start=0, final_fraction=0.0), 5)
    np.testing.assert_allclose(wsd, 1 - np.sqrt(np.arange(5) / 4), atol=1e-6)


def test_the_rate_stays_on_the_floor_after_the_last_step():
    schedule = make_schedule(ScheduleConfig(peak=1.0), 10)
    np.testing.assert_allclose(schedule(50), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "cosin"}, "schedule.name"),
        ({"decay_shape": "step"}, "schedule.decay_shape"),
        ({"peak": 0.0}, "schedule.peak"),
        ({"peak": float("nan")}, "schedule.peak"),
        ({"warmup_steps": -1}, "schedule.warmup_steps"),
        ({"final_fraction": 1.5}, "schedule.final_fraction"),
        ({"decay_start": 5}, "schedule.decay_start"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, named):
    with pytest.raises(UserError, match=named):
        ScheduleConfig(**arguments)


def test_what_does_not_fit_into_the_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps is 100"):
        make_schedule(ScheduleConfig(warmup_steps=100), 50)
    with pytest.raises(UserError, match="decay_start is 80"):
        make_schedule(ScheduleConfig(name="wsd", warmup_steps=5, decay_start=80), 50)
    with pytest.raises(UserError, match="at least 1"):
        make_schedule(ScheduleConfig(), 0)
