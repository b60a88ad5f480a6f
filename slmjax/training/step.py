"""The one training step: gradients over micro-batches, norm, clip, update, or skip. Compiled once, state donated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.objectives.next_token import Batch, Objective
from slmjax.sharding.mesh import BATCH
from slmjax.sharding.rules import tree_shardings
from slmjax.training.config import TrainingConfig
from slmjax.training.schedules import Schedule
from slmjax.training.state import TrainState

Metrics = dict[str, jax.Array]
SPIKE_WARMUP = 100  # accepted steps before spikes are judged: early gradient norms fall fast
NORM_DECAY = 0.98  # of the running mean of gradient norms


def _microbatches(batch: Batch, count: int, mesh: Mesh) -> Batch:
    """[B, ...] -> [count, B / count, ...]; every device keeps its own rows, so nothing crosses the network."""

    def split(x):
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH, "sequence")))

    return jax.tree.map(split, batch)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: TrainingConfig,
    token_bytes: np.ndarray,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure function (state, batch) -> (state, metrics) for `jax.jit(..., donate_argnums=0)`.

    The loss and its gradient are divided by the global sum of loss weights, over all micro-batches and devices, so they
    do not depend on how the batch is cut. A step whose loss or gradient is not finite, or whose gradient norm exceeds
    `spike_factor` times its running mean, changes nothing but the counters.
    """
    differentiate = jax.value_and_grad(objective, has_aux=True)

    def gradients(params: Any, frozen: Any, batch: Batch, rng: jax.Array):
        if config.accumulation == 1:
            return differentiate(params, frozen, batch, rng)

        def add(carry, piece):
            microbatch, i = piece
            out = differentiate(params, frozen, microbatch, jax.random.fold_in(rng, i))
            return jax.tree.map(jnp.add, carry, out), None

        pieces = _microbatches(batch, config.accumulation, mesh)
        shapes = jax.eval_shape(differentiate, params, frozen, jax.tree.map(lambda x: x[0], pieces), rng)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        summed, _ = jax.lax.scan(add, zeros, (pieces, jnp.arange(config.accumulation)))
        return summed

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        (loss_sum, (weight_sum, sums)), grads = gradients(state.params, state.frozen, batch, rng)
        # Sharded as the parameters, so that the sum over devices is a reduce-scatter.
        grads = jax.lax.with_sharding_constraint(grads, tree_shardings(grads, mesh))
        inverse = 1.0 / jnp.maximum(weight_sum, 1.0)
        norm = optax.tree.norm(grads) * inverse
        accepted = state.step - state.skipped
        mean_norm = state.gradient_norm
        good = jnp.isfinite(loss_sum) & jnp.isfinite(norm)
        if config.spike_factor:
            good &= (accepted < SPIKE_WARMUP) | (norm <= config.spike_factor * mean_norm)
        scale = inverse
        if config.clip_norm:
            scale = inverse * jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-12))
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # Short memory at first, so that the average forgets the initialization.
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
        targets = batch["targets"]
        num_bytes = jnp.sum(jnp.where(batch["loss_weights"] > 0, jnp.take(token_bytes, targets), 0).astype(jnp.float32))
        metrics = {
            "loss": sums["nll"] * inverse,
            "objective": loss_sum * inverse,
            "accuracy": sums["correct"] * inverse,
            "bits_per_byte": sums["nll"] / (jnp.log(2.0) * jnp.maximum(num_bytes, 1.0)),
            "gradient_norm": norm,
            "learning_rate": schedule(accepted),
            "target_tokens": weight_sum,
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        metrics |= {name: sums[name] * inverse for name in ("l2_sp", "ewc") if name in sums}
        if "kl" in sums:
            metrics["kl"] = sums["kl"] / jnp.maximum(sums["kl_tokens"], 1.0)
        return new_state, metrics

    return step


def make_eval_step(objective: Objective, token_bytes: np.ndarray) -> Callable[[Any, Any, Batch], Metrics]:
    """A pure function (params, frozen, batch) -> sums over the batch: nll (nats), correct, tokens, bytes."""

    def step(params: Any, frozen: Any, batch: Batch) -> Metrics:
        _, (weight_sum, sums) = objective(params, frozen, batch, None)
        counted = jnp.where(batch["loss_weights"] > 0, jnp.take(token_bytes, batch["targets"]), 0)
        return {**sums, "tokens": weight_sum, "bytes": jnp.sum(counted.astype(jnp.float32))}

    return step
