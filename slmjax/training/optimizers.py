"""Optimizers: optax with rules on parameter paths. Clipping is the step's, which needs the norm anyway."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from slmjax.training.config import OptimizerConfig
from slmjax.training.schedules import Schedule


def make_optimizer(config: OptimizerConfig, learning_rate: Schedule | float) -> optax.GradientTransformation:
    """The transformation from gradients to parameter updates (both shaped as the parameters).

    Stacked layers count as separate matrices in every optimizer: leaves [L, in, out] are updated exactly as L leaves
    [in, out] would be.
    """

    def decayed(params: Any) -> Any:
        return decay_mask(params, config.decay_embeddings)

    dtype = jnp.dtype(config.momentum_dtype)
    match config.name:
        case "adamw":
            return optax.adamw(
                learning_rate,
                b1=config.b1,
                b2=config.b2,
                eps=config.eps,
                mu_dtype=dtype,
                weight_decay=config.weight_decay,
                mask=decayed,
            )
        case "lion":
            return optax.lion(
                learning_rate,
                b1=config.b1,
                b2=config.b2,
                mu_dtype=dtype,
                weight_decay=config.weight_decay,
                mask=decayed,
            )
        case "adafactor":
            return optax.chain(
                _per_layer(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))),
                optax.ema(config.b1, debias=False, accumulator_dtype=dtype) if config.b1 else optax.identity(),
                optax.add_decayed_weights(config.weight_decay, mask=decayed),
                optax.scale_by_learning_rate(learning_rate),
            )
        case "muon":
            return _muon(config, learning_rate, dtype, decayed)
    raise AssertionError(config.name)


def with_multipliers(
    optimizer: optax.GradientTransformation, multipliers: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """The optimizer with each array's learning rate multiplied by a factor: `multipliers(params)`, a tree of them."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda update, factor: update * factor, updates, multipliers(params))

    return optax.chain(optimizer, optax.stateless(scale))


def decay_mask(params: Any, decay_embeddings: bool = False) -> Any:
    """True for the leaves that weight decay applies to: those named `kernel`, and `embedding` where asked.

    The number of axes does not tell: stacked norm scales [L, D] have two.
    """
    names = {"kernel", "embedding"} if decay_embeddings else {"kernel"}
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) in names, params)


def muon_mask(params: Any) -> Any:
    """True for the hidden matrices, `segment_*/…/kernel`; embeddings, lm_head, norms and biases go to AdamW."""

    def is_hidden_matrix(path: tuple[Any, ...], _: Any) -> bool:
        return _name(path[-1]) == "kernel" and any(_name(key).startswith("segment_") for key in path)

    return jax.tree_util.tree_map_with_path(is_hidden_matrix, params)


def _muon(config: OptimizerConfig, learning_rate: Schedule | float, dtype: Any, decayed: Any) -> Any:
    """Muon (Jordan et al. 2024) with Moonlight's update scale 0.2 * sqrt(max(in, out)) (arXiv:2502.16982, eq. 4)."""
    # The last two axes are the matrix; what stands before them is a batch of layers.
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    scale_by_muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.muon_momentum,
            mu_dtype=dtype,
            weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params),
        ),
        optax.stateless_with_tree_map(lambda update, _: 0.2 * math.sqrt(max(update.shape[-2:])) * update),
    )
    scale_by_adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=dtype)
    return optax.chain(
        optax.partition(
            {"muon": scale_by_muon, "adamw": scale_by_adam},
            lambda params: jax.tree.map(lambda hidden: "muon" if hidden else "adamw", muon_mask(params)),
        ),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate),
    )


def _per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation to each layer's leaf on its own: vmapped over the axes that stacking put in front.

    optax factors the two *largest* axes of an array, and clips by the RMS of a whole array: on a stacked [L, in, out]
    both would mix layers. The state is a tree as the parameters', with the transformation's state at each leaf.
    """

    def each(function: Callable[..., Any], path: tuple[Any, ...], *leaves: Any) -> Any:
        base_ndim = 2 if _name(path[-1]) in ("kernel", "embedding") else 1
        for _ in range(leaves[0].ndim - base_ndim):
            function = jax.vmap(function)
        return function(*leaves)

    def init(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: each(transformation.init, path, leaf), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        treedef: Any = jax.tree.structure(updates)
        paths_and_leaves = jax.tree_util.tree_leaves_with_path(updates)
        states = treedef.flatten_up_to(state)
        results = [
            each(transformation.update, path, leaf, leaf_state, param)
            for (path, leaf), leaf_state, param in zip(paths_and_leaves, states, jax.tree.leaves(params), strict=True)
        ]
        return treedef.unflatten([r[0] for r in results]), treedef.unflatten([r[1] for r in results])

    return optax.GradientTransformation(init, update)


def _name(key: Any) -> str:
    """The name of one step of a parameter path: a dict's key or a dataclass's attribute."""
    return str(getattr(key, "key", getattr(key, "name", key)))
