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
from slmjax.peft.anchors import REBUILT
from slmjax.peft.method import Method
from slmjax.sharding.rules import tree_shardings


@flax.struct.dataclass
class TrainState:
    """`params` are trained, `frozen` are not: they have no gradient and no optimizer memory (see `Method`)."""

    step: jax.Array  # int32, updates attempted
    params: Any
    frozen: Any
    opt_state: Any
    ema: Any  # exponential moving average of params, or None
    rng: jax.Array  # raw uint32 key data; each step folds its number in
    skipped: jax.Array  # int32, updates skipped so far: non-finite or spiking
    skipped_in_a_row: jax.Array  # int32
    gradient_norm: jax.Array  # float32, running mean over accepted steps; what a spike is measured against


def init_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool,
    method: Method,
    base: Any = None,
) -> TrainState:
    """A fresh state, a pure function of its arguments, to be called under jit with `tree_shardings` as out_shardings.

    base: the parameters that are fine-tuned; None: random ones.
    """
    params_key, rng = jax.random.split(jax.random.key(seed))
    if base is None:
        # Of layers that are alike, one is compiled: random numbers make long programs, and this one runs once.
        rolled = model.clone(execution=dataclasses.replace(model.execution, scan_unroll=1))
        base = rolled.init(params_key, jnp.zeros((1, 1), jnp.int32))["params"]
    params, frozen = method.split(base, jax.random.fold_in(params_key, 1))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        rng=jax.random.key_data(rng),
        skipped=zero,
        skipped_in_a_row=zero,
        gradient_norm=jnp.zeros((), jnp.float32),
    )


def abstract_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
    method: Method,
    base: Any = None,
) -> TrainState:
    """Shapes, dtypes and shardings of a state without its arrays: what restoring and compiling ahead of time need.

    base: as in `init_state`, of which only shapes and dtypes count.
    """
    shapes = jax.eval_shape(lambda base: init_state(model, optimizer, 0, ema=ema, method=method, base=base), base)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def without_base(state: TrainState) -> TrainState:
    """What a checkpoint holds: all but what comes from the base, which the base's own files hold."""
    return dataclasses.replace(state, frozen={name: tree for name, tree in state.frozen.items() if name not in REBUILT})
