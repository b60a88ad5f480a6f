"""Everything that a training run is at one moment, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from slmjax.models.transformer import Transformer
from slmjax.sharding.rules import tree_shardings


@flax.struct.dataclass
class TrainState:
    """`params` are trained, `frozen` are not: they have no gradient and no optimizer memory."""

    step: jax.Array  # int32, updates attempted
    params: Any
    frozen: Any
    opt_state: Any
    ema: Any  # exponential moving average of params, or None
    rng: jax.Array  # raw uint32 key data; each step folds its number in
    skipped: jax.Array  # int32, updates skipped so far: non-finite or spiking
    skipped_in_a_row: jax.Array  # int32
    gradient_norm: jax.Array  # float32, running mean over accepted steps; what a spike is measured against


def init_state(model: Transformer, optimizer: optax.GradientTransformation, seed: int, *, ema: bool) -> TrainState:
    """A fresh state; a pure function of the seed, to be called under jit with `state_shardings` as out_shardings."""
    params_key, rng = jax.random.split(jax.random.key(seed))
    # Of layers that are alike, one is compiled: random numbers make long programs, and this one runs once.
    rolled = model.clone(execution=dataclasses.replace(model.execution, scan_unroll=1))
    params = rolled.init(params_key, jnp.zeros((1, 1), jnp.int32))["params"]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        frozen={},
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        rng=jax.random.key_data(rng),
        skipped=zero,
        skipped_in_a_row=zero,
        gradient_norm=jnp.zeros((), jnp.float32),
    )


def abstract_state(model: Transformer, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool) -> TrainState:
    """Shapes, dtypes and shardings of a state without its arrays: what restoring and compiling ahead of time need."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, 0, ema=ema))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )
