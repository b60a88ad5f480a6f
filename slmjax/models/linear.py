"""The one weight product of the network."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.execution import Execution
from slmjax.models.parameters import Params, is_matrix


def normal_init(std: float | None, divisor: float = 1.0):
    """Normal initializer with standard deviation `std / divisor`; `std=None` means fan_in ** -0.5."""

    def init(key, shape, dtype=jnp.float32):
        scale = (std if std is not None else shape[-2] ** -0.5) / divisor
        return scale * jax.random.normal(key, shape, dtype)

    return init


def cast_weights(params: Params, dtype: Any) -> Params:
    """The matrices as the network would cast them at each use, cast once: the same results, less memory traffic.

    Norm gains and biases stay as they are: some families use them in float32.
    """

    def cast(path, leaf):
        return leaf.astype(dtype) if is_matrix(path[-1].key) and leaf.dtype != dtype else leaf

    cast_params: Params = jax.tree_util.tree_map_with_path(cast, params)
    return cast_params


def transposed_product(x: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """x W^T on the last axis, for W [out, in]: the form that XLA's CPU backend runs at the speed of memory.

    Weights are the left operand and x is transposed in memory. The barriers keep XLA from folding the transposes into
    the product, which then takes 2 to 3 times as long for 2 to 32 rows; 1 row and thousands lose nothing.
    """
    x_IN = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    y_ON = jax.lax.optimization_barrier(kernel_OI @ x_IN)
    return y_ON.T.reshape(*x.shape[:-1], kernel_OI.shape[0])


class Linear(nn.Module):
    """y = x W + b on the last axis. W is float32 `[in, out]`, cast to the execution's dtype where it is used.

    In the layouts of decoding W is `[out, in]`, but for a fused product of the layout "fused".
    """

    features: int
    execution: Execution
    use_bias: bool = False
    init_std: float | None = 0.02
    init_divisor: float = 1.0
    is_fused: bool = False

    @property
    def dtype(self) -> Any:
        """The dtype of the product and its result."""
        return self.execution.dtype

    @property
    def flatten_tokens(self) -> bool:
        """Whether the product is one of [tokens, in] rather than [B, T, in]."""
        return self.execution.flatten_tokens or self.is_fused

    @property
    def is_transposed(self) -> bool:
        """Whether W is held as [out, in]."""
        return not self.execution.is_stacked and not self.is_fused

    @nn.compact
    def weights(self, inputs: int) -> tuple[jax.Array, jax.Array | None]:
        """W as it is held (see the class) and b [features] or None, float32."""
        init = normal_init(self.init_std, self.init_divisor)
        shape = (self.features, inputs) if self.is_transposed else (inputs, self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        return kernel, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.weights(x.shape[-1])
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        if self.is_transposed:
            y = transposed_product(x, kernel)
        elif self.flatten_tokens and x.ndim > 2:
            y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], self.features)
        else:
            y = x @ kernel
        return y if bias is None else y + bias.astype(self.dtype)
