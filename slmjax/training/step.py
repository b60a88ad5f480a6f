"""The one training step: gradients over micro-batches, norm, clip, update, or skip. Compiled once, state donated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.objectives.loss import Batch, Loss, Objective
from slmjax.sharding.rules import tree_shardings
from slmjax.training.config import TrainingConfig
from slmjax.training.schedules import Schedule
from slmjax.training.state import TrainState

Metrics = dict[str, jax.Array]
# Accepted steps before spikes are judged, since early gradient norms fall fast, and the decay of their running mean:
# our choices, unmeasured; a mean over about 50 steps follows the slow fall of the norm and not a single spike.
SPIKE_WARMUP = 100
NORM_DECAY = 0.98


@dataclass(frozen=True)
class StepKind:
    """One kind of training step; a run has one or several (policy and value), and each batch says which it is for.

    Attributes:
        objective: what is minimized.
        batch: shape, dtype and sharding of each field; the first axis is the rows of the global batch.
        network: the top-level name in `params` that this kind trains, leaving the others as they are; None: all.
    """

    objective: Objective
    batch: Mapping[str, jax.ShapeDtypeStruct]
    network: str | None = None


def _microbatches(kind: StepKind, batch: Batch, count: int, mesh: Mesh) -> Batch:
    """[B, ...] -> [count, B / count, ...]; every device keeps its own rows, so nothing crosses the network."""

    def split(name: str, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        sharding = kind.batch[name].sharding
        assert isinstance(sharding, NamedSharding)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, *sharding.spec)))

    return {name: split(name, x) for name, x in batch.items()}


def _gradients_of(
    kind: StepKind, config: TrainingConfig, mesh: Mesh
) -> Callable[[Any, Any, Any, Batch, jax.Array], tuple[Any, Loss]]:
    """(trained, other networks, frozen, batch, rng) -> the gradient of the loss sum, and the loss, over all pieces."""

    def loss_of(trained: Any, others: Any, frozen: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Loss]:
        params = trained if kind.network is None else {**others, kind.network: trained}
        loss = kind.objective(params, frozen, batch, rng)
        return loss.sum, loss

    differentiate = jax.grad(loss_of, has_aux=True)

    def gradients(trained: Any, others: Any, frozen: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Loss]:
        if config.accumulation == 1:
            return differentiate(trained, others, frozen, batch, rng)

        def add(carry, piece):
            microbatch, i = piece
            out = differentiate(trained, others, frozen, microbatch, jax.random.fold_in(rng, i))
            return jax.tree.map(jnp.add, carry, out), None

        pieces = _microbatches(kind, batch, config.accumulation, mesh)
        first = {name: x[0] for name, x in pieces.items()}
        shapes = jax.eval_shape(differentiate, trained, others, frozen, first, rng)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        summed, _ = jax.lax.scan(add, zeros, (pieces, jnp.arange(config.accumulation)))
        return summed

    return gradients


def make_train_step(
    kind: StepKind,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: TrainingConfig,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure function (state, batch) -> (state, metrics) for `jax.jit(..., donate_argnums=0)`.

    The loss and its gradient are divided by the global sum of loss weights, over all micro-batches and devices, so they
    do not depend on how the batch is cut. A step whose loss or gradient is not finite, or whose gradient norm exceeds
    `spike_factor` times its running mean, changes nothing but the counters.
    """

    gradients = _gradients_of(kind, config, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trained, others, memory = _part(state, kind.network)
        grads, loss = gradients(trained, others, state.frozen, batch, rng)
        # Sharded as the parameters, so that the sum over devices is a reduce-scatter.
        grads = jax.lax.with_sharding_constraint(grads, tree_shardings(grads, mesh))
        inverse = 1.0 / jnp.maximum(loss.weight, 1.0)
        norm = optax.tree.norm(grads) * inverse
        accepted = state.step - state.skipped
        mean_norm = state.gradient_norm
        good = jnp.isfinite(loss.sum) & jnp.isfinite(norm)
        if config.spike_factor:
            good &= (accepted < SPIKE_WARMUP) | (norm <= config.spike_factor * mean_norm)
        scale = inverse
        if config.clip_norm:
            scale = inverse * jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-12))
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, memory = optimizer.update(grads, memory, trained)
        params, opt_state = _whole(state, kind.network, optax.apply_updates(trained, updates), memory)
        ema = state.ema
        if ema is not None:
            # Short memory at first, so that the average forgets the initialization, as TensorFlow's
            # ExponentialMovingAverage does with num_updates.
            decay = jnp.minimum(config.ema_decay, (1.0 + accepted) / (10.0 + accepted))
            ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        bad = (~good).astype(jnp.int32)
        decayed = NORM_DECAY * mean_norm + (1 - NORM_DECAY) * norm
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema),
            skipped=state.skipped + bad,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
            gradient_norm=jnp.where(good, jnp.where(accepted == 0, norm, decayed), mean_norm),
        )
        metrics = {
            "loss": loss.sum * inverse,  # what is minimized, unless the objective has a loss of its own to report
            "objective": loss.sum * inverse,
            **{name: mean.over(loss.weight) for name, mean in loss.metrics.items()},
            "gradient_norm": norm,
            "learning_rate": schedule(accepted),
            "target_tokens": loss.weight,
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return step


def _part(state: TrainState, network: str | None) -> tuple[Any, Any, Any]:
    """(what is trained, the other networks, the optimizer's memory of what is trained)."""
    if network is None:
        return state.params, {}, state.opt_state
    others = {name: tree for name, tree in state.params.items() if name != network}
    return state.params[network], others, state.opt_state[network]


def _whole(state: TrainState, network: str | None, trained: Any, memory: Any) -> tuple[Any, Any]:
    """The parameters and the optimizer's state with one network's put back."""
    if network is None:
        return trained, memory
    return {**state.params, network: trained}, {**state.opt_state, network: memory}


def make_eval_step(objective: Objective) -> Callable[[Any, Any, Batch], Loss]:
    """A pure function (params, frozen, batch) -> `Loss`, whose sums may be added over batches."""

    def step(params: Any, frozen: Any, batch: Batch) -> Loss:
        return objective(params, frozen, batch, None)

    return step
