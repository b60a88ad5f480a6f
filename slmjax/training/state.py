"""Everything that a training run is at one moment, as one pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from slmjax.sharding.rules import tree_shardings

# (key, base) -> (params, frozen): new parameters, or a base's with what is added to it.
Init = Callable[[jax.Array, Any], tuple[Any, Any]]


@flax.struct.dataclass
class TrainState:
    """`params` are trained, `frozen` are not: they have no gradient and no optimizer memory.

    Both are the recipe's: one network, or several by name. The fields' names are those on disk.
    """

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
    init: Init,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool,
    base: Any = None,
    networks: Sequence[str] = (),
) -> TrainState:
    """A fresh state, a pure function of its arguments, to be called under jit with `tree_shardings` as out_shardings.

    base: given to `init`. networks: names in `params` that have an optimizer memory of their own; none: one for all.
    """
    params_key, rng = jax.random.split(jax.random.key(seed))
    params, frozen = init(params_key, base)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        frozen=frozen,
        opt_state={name: optimizer.init(params[name]) for name in networks} or optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        rng=jax.random.key_data(rng),
        skipped=zero,
        skipped_in_a_row=zero,
        gradient_norm=jnp.zeros((), jnp.float32),
    )


def abstract_state(
    init: Init,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
    base: Any = None,
    networks: Sequence[str] = (),
) -> TrainState:
    """Shapes, dtypes and shardings of a state without its arrays: what restoring and compiling ahead of time need.

    base: as in `init_state`, of which only shapes and dtypes count.
    """

    def make(base: Any) -> TrainState:
        return init_state(init, optimizer, 0, ema=ema, base=base, networks=networks)

    shapes = jax.eval_shape(make, base)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def without(state: TrainState, names: Sequence[str]) -> TrainState:
    """The state without these parts of `frozen`."""
    return dataclasses.replace(state, frozen={name: tree for name, tree in state.frozen.items() if name not in names})
