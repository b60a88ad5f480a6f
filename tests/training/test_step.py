"""The step on an objective whose gradient is known: how a batch is cut, what is skipped, clipped and averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from slmjax.objectives.loss import Loss
from slmjax.sharding.mesh import MeshConfig, batch_spec, make_mesh
from slmjax.training.config import TrainingConfig
from slmjax.training.state import TrainState
from slmjax.training.step import SPIKE_WARMUP, StepKind, make_train_step

V, B, T = 16, 16, 4
RATE = 0.1


def squared_error(params, frozen, batch, rng):
    """sum of w (e[x] - y / V)^2, so that the gradient can be written down."""
    error_BT = params["table"][batch["inputs"], 0] - batch["targets"] / V
    loss = jnp.sum(batch["loss_weights"] * error_BT**2)
    return Loss(loss, jnp.sum(batch["loss_weights"]), {})


def gradient(table_V, batch):
    """Of the weighted mean of `squared_error`, in float64."""
    error = table_V[batch["inputs"]] - batch["targets"] / V
    grad_V = np.zeros(V)
    np.add.at(grad_V, batch["inputs"], 2.0 * batch["loss_weights"] * error)
    return grad_V / batch["loss_weights"].astype(np.float64).sum()


def make_batch(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    batch = {name: rng.integers(0, V, (B, T)).astype(np.int32) for name in ("inputs", "targets")}
    # Rows weigh from nothing to much: a mean of the micro-batches' means would be wrong.
    weights = rng.random((B, T)) * np.linspace(0, scale, B)[rng.permutation(B), None]
    return {**batch, "loss_weights": weights.astype(np.float32)}


BATCH = make_batch()


def make_step(optimizer=None, schedule=lambda s: RATE, **config):
    config = {"clip_norm": 0.0, "spike_factor": 0.0} | config
    mesh = make_mesh(MeshConfig(data=2, fsdp=1), jax.devices()[:2])
    sharding = NamedSharding(mesh, batch_spec())
    fields = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding) for name, array in BATCH.items()}
    training = TrainingConfig(steps=1, batch_size=B, **config)
    kind = StepKind(squared_error, fields)
    return jax.jit(make_train_step(kind, optimizer or optax.sgd(schedule), schedule, training, mesh))


def make_state(optimizer=None, ema=False, **changes):
    params = {"table": jnp.linspace(-1, 1, V)[:, None]}
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(
        step=zero,
        params=params,
        frozen={},
        opt_state=(optimizer or optax.sgd(lambda s: RATE)).init(params),
        ema=params if ema else None,
        rng=jax.random.key_data(jax.random.key(0)),
        skipped=zero,
        skipped_in_a_row=zero,
        gradient_norm=jnp.zeros((), jnp.float32),
    )
    return dataclasses.replace(state, **changes)


def table(params):
    return np.asarray(params["table"], np.float64)[:, 0]


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_update_is_that_of_the_weighted_mean_however_the_batch_is_cut(accumulation, seed):
    batch, state = make_batch(seed), make_state()
    new, metrics = make_step(accumulation=accumulation)(state, batch)
    expected = gradient(table(state.params), batch)
    np.testing.assert_allclose(table(new.params), table(state.params) - RATE * expected, atol=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    assert metrics["target_tokens"] == pytest.approx(batch["loss_weights"].sum(), rel=1e-6)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e3])
def test_the_gradient_is_clipped_to_its_norm_and_not_turned(clip):
    batch, state = make_batch(), make_state()
    new, metrics = make_step(clip_norm=clip, accumulation=2)(state, batch)
    expected = gradient(table(state.params), batch)
    norm = np.linalg.norm(expected)
    factor = min(1.0, clip / norm) if clip else 1.0
    np.testing.assert_allclose(table(new.params), table(state.params) - RATE * factor * expected, atol=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)  # as it was before clipping


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_batch_that_is_not_finite_changes_only_the_counters(poison, accumulation, assert_bitwise_equal):
    optimizer = optax.adamw(RATE)
    state, step = make_state(optimizer, ema=True), make_step(optimizer, ema_decay=0.9, accumulation=accumulation)
    state, _ = step(state, make_batch())
    bad = make_batch(1)
    bad["loss_weights"][5, 2] = poison
    once, metrics = step(state, bad)
    assert not np.isfinite(metrics["loss"])
    twice, _ = step(once, bad)
    for skipped in (once, twice):
        for name in ("params", "opt_state", "ema", "gradient_norm", "rng"):
            assert_bitwise_equal(getattr(state, name), getattr(skipped, name))
    assert (once.step, once.skipped, once.skipped_in_a_row) == (2, 1, 1)
    assert (twice.step, twice.skipped, twice.skipped_in_a_row) == (3, 2, 2)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (1, 1)
    good, _ = step(twice, make_batch(2))
    assert (good.step, good.skipped, good.skipped_in_a_row) == (4, 2, 0)
    without, _ = step(state, make_batch(2))  # as if the bad batches had never been
    assert_bitwise_equal(good.params, without.params)
    assert_bitwise_equal(good.opt_state, without.opt_state)


def test_a_batch_without_targets_is_no_step_of_the_parameters(assert_bitwise_equal):
    batch, state = make_batch(scale=0.0), make_state()
    new, metrics = make_step()(state, batch)
    assert_bitwise_equal(state.params, new.params)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("accepted", "factor", "skipped"),
    [(SPIKE_WARMUP, 10.0, 1), (SPIKE_WARMUP - 1, 10.0, 0), (SPIKE_WARMUP, 0.0, 0), (SPIKE_WARMUP, 1000.0, 0)],
)
def test_a_gradient_far_above_its_running_mean_is_skipped_after_the_warmup(accepted, factor, skipped):
    batch = make_batch()
    norm = np.linalg.norm(gradient(table(make_state().params), batch))
    earlier_skips = 7  # are not accepted steps
    state = make_state(
        step=jnp.int32(accepted + earlier_skips), skipped=jnp.int32(earlier_skips), gradient_norm=jnp.float32(norm / 50)
    )
    new, _ = make_step(spike_factor=factor)(state, batch)
    assert int(new.skipped) == earlier_skips + skipped
    assert (table(new.params) == table(state.params)).all() == bool(skipped)
    # A spike does not raise the mean that it is measured against.
    mean = norm / 50 if skipped else 0.98 * norm / 50 + 0.02 * norm
    assert new.gradient_norm == pytest.approx(mean, rel=1e-5)


def test_the_average_follows_the_parameters_with_a_memory_that_grows_to_ema_decay():
    state, step = make_state(ema=True), make_step(ema_decay=0.3)
    average = table(state.params)
    for i in range(6):
        state, _ = step(state, make_batch(i))
        decay = min(0.3, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * table(state.params)
        np.testing.assert_allclose(table(state.ema), average, atol=1e-6)
    assert not np.allclose(average, table(state.params), atol=1e-4)


def test_the_reported_learning_rate_is_the_one_that_was_used_and_skipped_steps_do_not_advance_it():
    def schedule(s):
        return RATE / (1.0 + s)

    state, step = make_state(optax.sgd(schedule)), make_step(schedule=schedule)
    bad = make_batch()
    bad["loss_weights"][0, 0] = np.nan
    for i, batch in enumerate([make_batch(0), bad, make_batch(1), bad, bad, make_batch(2)]):
        accepted = (0, 1, 1, 2, 2, 2)[i]
        before = table(state.params)
        state, metrics = step(state, batch)
        assert metrics["learning_rate"] == pytest.approx(RATE / (1 + accepted))
        if batch is not bad:
            expected = before - RATE / (1 + accepted) * gradient(before, batch)
            np.testing.assert_allclose(table(state.params), expected, atol=1e-6)
