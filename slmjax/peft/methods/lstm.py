"""The bidirectional LSTM (Hochreiter and Schmidhuber 1997) that encodes P-tuning's prompt."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

LAYERS = 2
DIRECTIONS = ("forward", "backward")


def init_lstm(key: jax.Array, inputs: int, hidden: int) -> dict[str, Any]:
    """Both layers and directions, uniform within hidden ** -0.5; gates are input, forget, cell, output, as in torch."""
    tree: dict[str, Any] = {}
    for layer in range(LAYERS):
        rows = inputs if layer == 0 else 2 * hidden
        for direction in DIRECTIONS:
            key, *keys = jax.random.split(key, 4)
            shapes = {"input_kernel": (rows, 4 * hidden), "state_kernel": (hidden, 4 * hidden), "bias": (4 * hidden,)}
            tree[f"{direction}_{layer}"] = {
                name: jax.random.uniform(k, shape, minval=-1.0, maxval=1.0) * hidden**-0.5
                for k, (name, shape) in zip(keys, shapes.items(), strict=True)
            }
    return tree


def lstm(params: dict[str, Any], x_NE: jax.Array) -> jax.Array:
    """Both directions' states side by side after the last layer, [n, 2 hidden]."""
    for layer in range(LAYERS):
        states = [_direction(params[f"{name}_{layer}"], x_NE, reverse=name == "backward") for name in DIRECTIONS]
        x_NE = jnp.concatenate(states, axis=-1)
    return x_NE


def _direction(params: dict[str, jax.Array], x_NE: jax.Array, *, reverse: bool) -> jax.Array:
    def step(carry, gates):
        state, cell = carry
        i, f, g, o = jnp.split(gates + state @ params["state_kernel"], 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        state = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (state, cell), state

    zero = jnp.zeros(params["state_kernel"].shape[0])
    return jax.lax.scan(step, (zero, zero), x_NE @ params["input_kernel"] + params["bias"], reverse=reverse)[1]
