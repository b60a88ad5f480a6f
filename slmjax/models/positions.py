"""Position encodings: rotary embeddings with their stretched variants, and ALiBi's slopes.

Rotary: Su et al. 2021 (arXiv:2104.09864), in the half-split layout of the published checkpoints: dimension i is paired
with i + rotary_dim / 2. Stretching: linear (Chen et al. 2023), dynamic NTK, llama3 (Llama 3.1 report), YaRN (Peng et
al. 2023, arXiv:2309.00071), LongRoPE (Ding et al. 2024). ALiBi: Press et al. 2022 (arXiv:2108.12409).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.models.config import RopeScaling

RopeTable = tuple[jax.Array, jax.Array]  # cos, sin: float32 [B, T, rotary_dim / 2]


def llama3_smoothing(wavelengths: np.ndarray, s: RopeScaling) -> np.ndarray:
    """Llama 3.1's weight of each frequency as it was: 0 where it is divided by the factor (long waves), 1: it stays."""
    waves = s.original_context_length / wavelengths
    return np.clip((waves - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)


def _llama3(inv_freq: np.ndarray, s: RopeScaling) -> np.ndarray:
    smooth = llama3_smoothing(2 * math.pi / inv_freq, s)
    return (1 - smooth) * inv_freq / s.factor + smooth * inv_freq


def _yarn(inv_freq: np.ndarray, s: RopeScaling, theta: float, dim: int) -> np.ndarray:
    def dimension_of(rotations: float) -> float:
        return dim * math.log(s.original_context_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_of(s.beta_fast)), 0)
    high = min(math.ceil(dimension_of(s.beta_slow)), dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return inv_freq / s.factor * ramp + inv_freq * (1 - ramp)


def _last_positions(positions_BT: jax.Array) -> jax.Array:
    """The last position of each token's document, [B, T]: a document ends where the next token's is not one more."""
    T = positions_BT.shape[1]
    ends_BT = jnp.diff(positions_BT, axis=1, append=positions_BT[:, -1:]) != 1
    index_BT = jax.lax.cummin(jnp.where(ends_BT, jnp.arange(T), T - 1), axis=1, reverse=True)
    return jnp.take_along_axis(positions_BT, index_BT, axis=1)


def rope_table(positions_BT: jax.Array, dim: int, theta: float, scaling: RopeScaling | None) -> RopeTable:
    """cos and sin of position x frequency, float32 [B, T, dim / 2], for `dim` rotated dimensions.

    longrope and dynamic have other frequencies for documents that reach beyond the original context. Each document
    decides for itself, by its last position among these tokens: neither the rows beside it nor the documents packed
    with it have a say. While decoding that is the newest token's position, and what the cache holds stays as it was
    computed. For dynamic this is what transformers does. For longrope generation runs a row anew where it outgrows the
    original context (`inference/longrope.py`).
    """
    exponents = np.arange(0, dim, 2, dtype=np.float64) / dim
    inv_freq = theta**-exponents
    frequencies: jax.Array | np.ndarray = inv_freq  # [dim / 2], or [B, T, dim / 2] where documents differ
    scale = 1.0
    if scaling is not None:
        scale = scaling.magnitude
        if scaling.kind == "linear":
            frequencies = inv_freq / scaling.factor
        elif scaling.kind == "llama3":
            frequencies = _llama3(inv_freq, scaling)
        elif scaling.kind == "yarn":
            frequencies = _yarn(inv_freq, scaling, theta, dim)
        elif scaling.kind == "longrope":
            beyond_BT1 = _last_positions(positions_BT)[..., None] >= scaling.original_context_length
            short = (inv_freq / np.asarray(scaling.short_factor)).astype(np.float32)
            long = (inv_freq / np.asarray(scaling.long_factor)).astype(np.float32)
            frequencies = jnp.where(beyond_BT1, long, short)
        else:  # dynamic: theta grows with the length of the document
            length_BT1 = _last_positions(positions_BT)[..., None] + 1
            length_BT1 = jnp.maximum(length_BT1, scaling.original_context_length).astype(jnp.float32)
            ratio = scaling.factor * length_BT1 / scaling.original_context_length - (scaling.factor - 1)
            frequencies = (theta * ratio ** (dim / (dim - 2))) ** -jnp.asarray(exponents, jnp.float32)
    angles_BTR = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles_BTR) * scale, jnp.sin(angles_BTR) * scale


def rotate(x_BTHK: jax.Array, table: RopeTable) -> jax.Array:
    """Rotate the first `rotary_dim` dimensions of each head; the rest pass. Computed in float32, returned as x."""
    cos, sin = (jnp.concatenate([t, t], axis=-1)[:, :, None, :] for t in table)
    dim = cos.shape[-1]
    x = x_BTHK[..., :dim]
    # Halves are swapped in the compute dtype and widened inside one fused product: no float32 copy of the heads.
    turned = jnp.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], axis=-1)
    y = (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x_BTHK.dtype)
    return y if dim == x_BTHK.shape[-1] else jnp.concatenate([y, x_BTHK[..., dim:]], axis=-1)


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> np.ndarray:
    """Slopes of ALiBi for any number of heads, float32 [H]; the extra heads take every second slope of 2p heads.

    max_bias: the last slope of a power of two of heads is 2 ** -max_bias; 8 in the paper, 16 in some of MPT.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    base = 2.0 ** -(max_bias / power)
    slopes = [base ** (i + 1) for i in range(power)]
    if power < num_heads:
        extra = 2.0 ** -(max_bias / (2 * power))
        slopes += [extra ** (2 * i + 1) for i in range(num_heads - power)]
    return np.asarray(slopes, np.float32)


def alibi_rounding(num_heads: int, segments_BS: jax.Array | None, length: int, max_bias: float = 8.0) -> jax.Array:
    """The error that Falcon's arithmetic adds to ALiBi's slope * position of each key, float32 [B, S, H].

    It multiplies the two in bfloat16, whatever the network's dtype: at position 400 of 32 heads its logits are 0.4 off
    those of exact slopes. Positions count from the beginning of the key's document. segments_BS: None is one document.
    """
    index_1S = jnp.arange(length)[None]
    starts: jax.Array | int = 0
    if segments_BS is not None:
        begins_BS = jnp.diff(segments_BS, axis=1, prepend=segments_BS[:, :1] - 1) != 0
        starts = jax.lax.cummax(jnp.where(begins_BS, index_1S, 0), axis=1)
    positions_BS1 = (index_1S - starts)[..., None].astype(jnp.float32)
    slopes_H = alibi_slopes(num_heads, max_bias)

    def rounded(x):  # an explicit reduction: XLA may leave out a conversion to bfloat16 and back
        return jax.lax.reduce_precision(jnp.asarray(x), exponent_bits=8, mantissa_bits=7)

    return rounded(rounded(slopes_H) * rounded(positions_BS1)) - slopes_H * positions_BS1
