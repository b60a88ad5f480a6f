"""The chunked feed-forward equals the plain one: outputs and gradients, on every mesh, with or without gate or bias."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.feedforward import gated_activation, plain_activation
from slmjax.sharding.chunked_feedforward import chunked_feedforward
from slmjax.sharding.mesh import MeshConfig, make_mesh

B, T, D, F = 8, 6, 16, 32
CHUNK_BYTES = 4 * F * 5  # 5 tokens would fit: the chunks must divide the tokens all the same
MESHES = [None, MeshConfig(2, 2, 1, 2), MeshConfig(1, 2, 2, 2), MeshConfig(1, 8, 1, 1)]


def sub_layer(gated: bool, bias: bool):
    keys = iter(jax.random.split(jax.random.key(0), 7))

    def weights(inputs, outputs):
        kernel = 0.2 * jax.random.normal(next(keys), (inputs, outputs))
        return kernel, jax.random.normal(next(keys), (outputs,)) if bias else None

    x_BTD = jax.random.normal(next(keys), (B, T, D))
    up, down = weights(D, F), weights(F, D)
    return x_BTD, up, down, weights(D, F) if gated else (None, None)


def product(x, weights):
    kernel, bias = weights
    return x @ kernel if bias is None else x @ kernel + bias


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("gated,bias", [(True, False), (False, True), (True, True)])
def test_equals_the_plain_products(mesh, gated, bias):
    if mesh is not None and len(jax.devices()) < 8:
        pytest.skip("needs 8 emulated devices")
    activation = partial(gated_activation if gated else plain_activation, "silu")
    feedforward = chunked_feedforward(None if mesh is None else make_mesh(mesh), CHUNK_BYTES)

    def plain(x, up, down, gate):
        products = (product(x, up),)
        if gated:
            products = (product(x, gate), *products)
        return jnp.sum(jnp.sin(product(activation(*products), down)))

    def chunked(x, up, down, gate):
        return jnp.sum(jnp.sin(feedforward(activation, x, up, down, gate)))

    arguments = sub_layer(gated, bias)
    expected = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2, 3)))(*arguments)
    got = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1, 2, 3)))(*arguments)
    for e, g in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(e))))
