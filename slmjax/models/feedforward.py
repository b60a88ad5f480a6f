"""Feed-forward sub-layer: plain (Vaswani et al. 2017) or gated (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from slmjax.models.activations import ACTIVATIONS
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.linear import Linear


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) when not gated."""

    config: ModelConfig
    ffn_dim: int
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c, run = self.config, self.execution
        linear = partial(Linear, execution=run, use_bias=c.ffn_bias, init_std=c.init_std)
        divisor = math.sqrt(2 * c.num_layers) if c.init_scale_residual else 1.0
        if run.layout == "fused" and c.gated:
            both = linear(2 * self.ffn_dim, is_fused=True, name="gate_up_proj")(x_BTD)
            hidden = gated_activation(c.activation, *jnp.split(both, 2, axis=-1))
            return linear(c.embed_dim, name="down_proj")(hidden)
        up = linear(self.ffn_dim, name="up_proj")
        gate = linear(self.ffn_dim, name="gate_proj") if c.gated else None
        down = linear(c.embed_dim, init_divisor=divisor, name="down_proj")
        activation: Callable[..., jax.Array] = gated_activation if c.gated else plain_activation
        if run.feedforward is not None and not self.is_initializing():
            D, F = c.embed_dim, self.ffn_dim
            weights = up.weights(D), down.weights(F), (None, None) if gate is None else gate.weights(D)
            return run.feedforward(partial(activation, c.activation), x_BTD.astype(run.dtype), *weights)
        products: tuple[jax.Array, ...] = (checkpoint_name(up(x_BTD), "ffn_up"),)
        if gate is not None:
            products = (checkpoint_name(gate(x_BTD), "ffn_gate"), *products)
        return down(run.constrain(activation(c.activation, *products), "ffn"))


def plain_activation(name: str, up: jax.Array) -> jax.Array:
    """The activation without a gate, `act(up)`."""
    return ACTIVATIONS[name](up)


def gated_activation(name: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """The gated activation, `act(gate) * up`."""
    return ACTIVATIONS[name](gate) * up
