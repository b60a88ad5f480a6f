"""The one weight product of the network."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def normal_init(std: float | None, divisor: float = 1.0):
    """Normal initializer with standard deviation `std / divisor`; `std=None` means fan_in ** -0.5."""

    def init(key, shape, dtype=jnp.float32):
        scale = (std if std is not None else shape[-2] ** -0.5) / divisor
        return scale * jax.random.normal(key, shape, dtype)

    return init


class Linear(nn.Module):
    """y = x W + b on the last axis. W is float32 `[in, out]`, cast to `dtype` where it is used."""

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    init_std: float | None = 0.02
    init_divisor: float = 1.0
    flatten_tokens: bool = False

    @nn.compact
    def weights(self, inputs: int) -> tuple[jax.Array, jax.Array | None]:
        """W [inputs, features] and b [features] or None, float32."""
        init = normal_init(self.init_std, self.init_divisor)
        kernel = self.param("kernel", init, (inputs, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        return kernel, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.weights(x.shape[-1])
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        if self.flatten_tokens and x.ndim > 2:
            y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], self.features)
        else:
            y = x @ kernel
        return y if bias is None else y + bias.astype(self.dtype)
