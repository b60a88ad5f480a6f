"""Quantized weights: the nearest representable values, packed and unpacked exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.quantization.weights import (
    NF4_LEVELS,
    dequantize_kernel,
    dequantized,
    is_quantized,
    quantize_kernel,
    quantized,
)

LEVELS = {"int8": np.arange(-127, 128) / 127, "int4": np.arange(-7, 8) / 7, "nf4": NF4_LEVELS}


def kernel(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("shape", [(128, 5), (3, 192, 4), (2, 24, 7)])
def test_each_weight_becomes_the_nearest_level_of_its_scale(kind, shape):
    w = kernel(*shape)
    held = quantize_kernel(w, kind)
    group = shape[-2] if kind == "int8" else np.gcd(shape[-2], 64)
    groups = np.asarray(w).reshape(*shape[:-2], -1, group, shape[-1])
    largest = np.abs(groups).max(axis=-2, keepdims=True)
    levels = LEVELS[kind] * np.ones((*groups.shape, 1))
    nearest = np.abs(groups[..., None] / largest[..., None] - levels).min(axis=-1) * largest
    error = np.abs(np.asarray(dequantize_kernel(held)) - np.asarray(w)).reshape(groups.shape)
    np.testing.assert_allclose(error, nearest, atol=1e-6)
    once = dequantize_kernel(held)  # a second time changes nothing more
    np.testing.assert_allclose(dequantize_kernel(quantize_kernel(once, kind)), once, rtol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4), ("nf4", 4)])
def test_bits_a_weight(kind, bits):
    w = kernel(1024, 64)
    held = quantize_kernel(w, kind)
    scale_bits = 32 / (1024 if kind == "int8" else 64)
    assert sum(leaf.nbytes for leaf in held.values()) * 8 == w.size * (bits + scale_bits)


def test_zeros_stay_zeros():
    for kind in LEVELS:
        np.testing.assert_array_equal(dequantize_kernel(quantize_kernel(jnp.zeros((64, 2)), kind)), jnp.zeros((64, 2)))


def test_the_levels_of_nf4_are_the_published_ones():
    """QLoRA's appendix E, to the float32 that it prints."""
    published = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    np.testing.assert_allclose(NF4_LEVELS, published, atol=2e-6)


def test_only_weight_products_are_quantized():
    params = {
        "embedder": {"embedding": kernel(8, 4)},
        "lm_head": {"kernel": kernel(4, 8)},
        "segment_0": {"block_0": {"q_proj": {"kernel": kernel(2, 4, 4), "bias": kernel(2, 4)}}},
    }
    small = quantized(params, "int8")
    assert set(small["segment_0"]["block_0"]["q_proj"]) == {"kernel_int8", "kernel_scale", "bias"}
    assert is_quantized(small) and not is_quantized(params)
    back = dequantized(small)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    np.testing.assert_array_equal(back["lm_head"]["kernel"], params["lm_head"]["kernel"])
    np.testing.assert_allclose(
        back["segment_0"]["block_0"]["q_proj"]["kernel"], params["segment_0"]["block_0"]["q_proj"]["kernel"], atol=0.02
    )


def test_an_odd_number_of_inputs_does_not_pack():
    with pytest.raises(UserError, match="int8"):
        quantize_kernel(kernel(7, 2), "int4")
