"""Activation functions by name. jax is imported where one is called: to check a name is to look it up here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def silu(x: jax.Array) -> jax.Array:
    """x * sigmoid(x), also called swish (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    import jax

    return jax.nn.silu(x)


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) with the exact normal distribution (arXiv:1606.08415)."""
    import jax

    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The approximation of `gelu` by tanh, with which GPT-2 and Gemma were trained."""
    import jax

    return jax.nn.gelu(x, approximate=True)


def relu(x: jax.Array) -> jax.Array:
    """The rectifier `max(x, 0)`."""
    import jax

    return jax.nn.relu(x)


def relu2(x: jax.Array) -> jax.Array:
    """max(x, 0) squared (So et al. 2021, arXiv:2109.08668)."""
    import jax

    return jax.numpy.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu2,
}
