"""A base in 8 or 4 bits: the weight products' kernels as integers and scales, made whole again where they are used.

int8: one scale for each output. int4 and nf4: one scale for each group of 64 inputs of an output, two numbers a byte;
nf4's sixteen values are quantiles of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.parameters import Params, flatten, is_weight_product, unflatten

KINDS = ("int8", "int4", "nf4")
GROUP = 64  # inputs that share a scale; fewer where 64 does not divide the inputs
_NF4_TAIL = 0.9677083  # probability of the outermost quantile (QLoRA's code: the mean of 1 - 1/30 and 1 - 1/32)


def _nf4_levels() -> np.ndarray:
    """The 16 values, ascending from -1 to 1, with an exact 0: seven negative quantiles and eight positive ones."""
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(_NF4_TAIL, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(_NF4_TAIL, 0.5, 8)[:-1]]
    levels = np.sort([*positive, 0.0, *negative])
    return (levels / levels.max()).astype(np.float32)


NF4_LEVELS = _nf4_levels()


def quantize_kernel(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """`kernel_<kind>` and `kernel_scale` of a kernel [..., in, out], by rounding to the nearest value.

    int8: int8 [..., in, out] and float32 [..., out]. int4, nf4: uint8 [..., in / 2, out], byte i with input 2i in its
    low half and 2i + 1 in its high one, and float32 [..., in / group, out].
    """
    kernel = kernel.astype(jnp.float32)
    if kind == "int8":
        scale = jnp.max(jnp.abs(kernel), axis=-2) / 127.0
        codes = jnp.round(kernel / _nonzero(scale)[..., None, :])
        return {"kernel_int8": codes.astype(jnp.int8), "kernel_scale": scale}
    *lead, rows, columns = kernel.shape
    group = math.gcd(rows, GROUP)
    if group % 2:
        raise UserError(f"A weight of {rows} inputs cannot be held in {kind}, two numbers a byte: choose int8.")
    groups = kernel.reshape(*lead, rows // group, group, columns)
    largest = jnp.max(jnp.abs(groups), axis=-2)
    scale = largest / 7.0 if kind == "int4" else largest
    unit = groups / _nonzero(scale)[..., None, :]
    if kind == "int4":
        codes = jnp.round(unit) + 8
    else:
        codes = jnp.searchsorted((NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2, unit)  # between two levels: the nearer
    codes = codes.astype(jnp.uint8).reshape(*lead, rows // 2, 2, columns)
    return {f"kernel_{kind}": codes[..., 0, :] | codes[..., 1, :] << 4, "kernel_scale": scale}


def dequantize_kernel(leaves: Mapping[str, jax.Array], dtype: Any = jnp.float32) -> jax.Array:
    """The kernel [..., in, out] of what `quantize_kernel` gave: code times scale in float32, then cast."""
    scale = leaves["kernel_scale"]
    if "kernel_int8" in leaves:
        return (leaves["kernel_int8"].astype(jnp.float32) * scale[..., None, :]).astype(dtype)
    kind = "int4" if "kernel_int4" in leaves else "nf4"
    packed = leaves[f"kernel_{kind}"]
    *lead, half, columns = packed.shape
    codes = jnp.stack([packed & 15, packed >> 4], axis=-2).reshape(*lead, 2 * half, columns)
    values = codes.astype(jnp.float32) - 8.0 if kind == "int4" else jnp.asarray(NF4_LEVELS)[codes]
    groups = values.reshape(*lead, scale.shape[-2], -1, columns) * scale[..., None, :]
    return groups.reshape(*lead, 2 * half, columns).astype(dtype)


def quantized(params: Any, kind: str) -> Any:
    """Nested parameters with the kernel of every weight product quantized; tables, head, norms and biases stay."""

    flat: Params = {}
    for path, leaf in flatten(params).items():
        if is_weight_product(path):
            module = path.removesuffix("kernel")
            flat |= {module + name: array for name, array in quantize_kernel(leaf, kind).items()}
        else:
            flat[path] = leaf
    return unflatten(flat)


def dequantized(params: Any) -> Any:
    """The inverse of `quantized`, up to the rounding; kernels are float32."""
    if not isinstance(params, Mapping):
        return params
    held = {name: value for name, value in params.items() if name.startswith("kernel_")}
    rest = {name: dequantized(value) for name, value in params.items() if name not in held}
    return rest | {"kernel": dequantize_kernel(held)} if held else rest


def is_quantized(params: Any) -> bool:
    """Whether any kernel of the nested parameters is quantized."""
    return isinstance(params, Mapping) and any(
        name.startswith("kernel_") or is_quantized(value) for name, value in params.items()
    )


def _nonzero(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0.0, 1.0, scale)
