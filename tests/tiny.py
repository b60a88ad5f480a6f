"""Small networks, batches and trees of numbers, made by NumPy: each JAX operation outside a jit is one more program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.models.config import ModelConfig
from slmjax.models.parameters import abstract_params
from slmjax.models.transformer import Transformer


def make_batch(vocab_size: int, rows: int, length: int, documents: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A packed batch: rows of one to `documents` documents, every array [rows, length]."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, documents + 1, (rows, length)), axis=1).astype(np.int32)
    positions = np.zeros_like(segments)
    for row, ids in zip(positions, segments, strict=True):
        for i in np.unique(ids):
            row[ids == i] = np.arange((ids == i).sum())
    inputs, targets = rng.integers(0, vocab_size, (2, rows, length)).astype(np.int32)
    weights = rng.random((rows, length)).astype(np.float32)
    return {
        "inputs": inputs,
        "targets": targets,
        "positions": positions,
        "segments": segments,
        "loss_weights": weights,
    }


@functools.cache
def param_shapes(config: ModelConfig) -> Any:
    """The shapes and dtypes of a network's parameters, traced once for all tests of a process."""
    return abstract_params(config)


@functools.cache
def _initialized(config: ModelConfig) -> Any:
    return jax.jit(Transformer(config).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def initialized(config: ModelConfig) -> Any:
    """A network's fresh parameters, in dicts of the caller's own; the arrays are shared by all who ask."""
    return jax.tree.map(lambda x: x, _initialized(config))


def noise(tree: Any, scale: float = 0.2, seed: int = 1) -> Any:
    """A tree of the same shapes (of arrays or of `ShapeDtypeStruct`), filled with normal numbers of this scale."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (scale * rng.standard_normal(s.shape)).astype(np.float32), tree)


def moved(tree: Any, scale: float = 0.1, seed: int = 4) -> Any:
    """`tree` plus `noise` of its shapes."""
    return jax.tree.map(lambda x, n: np.asarray(x) + n, tree, noise(tree, scale, seed))


def largest(x: Any) -> float:
    """The largest absolute value of an array, found without a JAX program."""
    return float(np.abs(np.asarray(x)).max())


def sum_and_loss(objective: Any) -> Any:
    """An objective as `jax.value_and_grad(..., has_aux=True)` takes it: what is differentiated, and all of the loss."""

    def differentiated(*args: Any) -> tuple[Any, Any]:
        loss = objective(*args)
        return loss.sum, loss

    return differentiated
