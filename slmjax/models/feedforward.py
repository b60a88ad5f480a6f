"""Feed-forward sub-layer: plain (Vaswani et al. 2017) or gated (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) when not gated."""

    config: ModelConfig
    ffn_dim: int
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c, run = self.config, self.execution
        linear = partial(
            Linear,
            use_bias=c.ffn_bias,
            dtype=run.dtype,
            init_std=c.init_std,
            flatten_tokens=run.flatten_tokens,
            rows=run.layers_apart,
        )
        activation = ACTIVATIONS[c.activation]
        up_BTF = checkpoint_name(linear(self.ffn_dim, name="up_proj")(x_BTD), "ffn_up")
        if c.gated:
            gate_BTF = checkpoint_name(linear(self.ffn_dim, name="gate_proj")(x_BTD), "ffn_gate")
            h_BTF = activation(gate_BTF) * up_BTF
        else:
            h_BTF = activation(up_BTF)
        h_BTF = run.constrain(h_BTF, "ffn")
        divisor = math.sqrt(2 * c.num_layers) if c.init_scale_residual else 1.0
        return linear(c.embed_dim, init_divisor=divisor, name="down_proj")(h_BTF)
