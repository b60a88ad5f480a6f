"""RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016), computed in float32."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig


class Norm(nn.Module):
    """Normalize the last axis. Returns `dtype`; statistics are float32.

    Implementations differ in where they round: Llama multiplies by the scale after rounding to the compute dtype,
    OLMo-2 and Gemma before (`scale_float32`); in bfloat16 that changes logits.
    """

    kind: str = "rms"
    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = False
    unit_offset: bool = False
    scale_float32: bool = False
    heads: int = 0  # above 0: x is [..., heads, K], each head has gains of its own, and the scale is [heads * K]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        if self.use_scale:
            start = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
            shape = (max(self.heads, 1) * x.shape[-1],)
            scale = self.param("scale", start, shape, jnp.float32).astype(jnp.float32)
            scale = scale.reshape(self.heads, -1) if self.heads else scale
            scale = scale + 1.0 if self.unit_offset else scale
            if self.scale_float32 or self.kind == "layer":
                y = y * scale
            else:
                y = y.astype(self.dtype) * scale.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return y.astype(self.dtype)


def block_norm(config: ModelConfig, dtype: Any, name: str) -> Norm:
    """The norm that a network uses around its sub-layers and at its ends."""
    return Norm(
        kind=config.norm,
        eps=config.norm_eps,
        use_scale=config.norm_scale,
        use_bias=config.norm_bias,
        unit_offset=config.norm_unit_offset,
        scale_float32=config.norm_scale_float32,
        dtype=dtype,
        name=name,
    )


def query_key_norm(config: ModelConfig, dtype: Any, name: str, heads: int = 0) -> Norm:
    """The norm on queries and keys: of the network's kind, with a gain and never a bias.

    heads: as many gains as heads; 0: they share one.
    """
    return Norm(
        kind=config.norm,
        eps=config.norm_eps,
        unit_offset=config.norm_unit_offset,
        scale_float32=config.norm_scale_float32,
        heads=heads,
        dtype=dtype,
        name=name,
    )
