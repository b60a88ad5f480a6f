"""The chunked loss against log-softmax on whole logits: values, gradients, and the memory that it exists to save."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.models.config import ModelConfig
from slmjax.objectives.chunks import chunk_size
from slmjax.objectives.cross_entropy import linear_cross_entropy

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B, T, E, V = 2, 150, 16, 37  # 300 tokens: three chunks of 100 where the limit is small
ONE_CHUNK, CHUNKS = 2**28, 1


def config(**changes) -> ModelConfig:
    return ModelConfig(vocab_size=V, num_layers=1, embed_dim=E, num_heads=2, ffn_dim=8, **changes)


def inputs(*, bias: bool, dtype=jnp.float32, seed=0):
    """x [B, T, E], kernel [E, V], bias [V] or None, targets, weights; a fifth of the weights are 0."""
    rng = np.random.default_rng(seed)
    x_BTE = jnp.asarray(rng.standard_normal((B, T, E)), dtype)
    kernel_EV = jnp.asarray(rng.standard_normal((E, V)), jnp.float32)
    bias_V = jnp.asarray(rng.standard_normal(V), jnp.float32) if bias else None
    targets_BT = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights_BT = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) > 0.2), jnp.float32)
    return x_BTE, kernel_EV, bias_V, targets_BT, weights_BT


def naive(config, z_loss, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT):
    """(loss, nll, correct) with the logits of all tokens at once."""
    logits = jnp.einsum("bte,ev->btv", x_BTE.astype(jnp.float32), kernel_EV)
    logits = logits if bias_V is None else logits + bias_V
    logits = logits / config.logit_divisor
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    log_probabilities = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_probabilities, targets_BT[..., None], axis=-1)[..., 0]
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    correct = jnp.argmax(logits, axis=-1) == targets_BT
    weighted = lambda a: jnp.sum(weights_BT * a)  # noqa: E731
    return weighted(nll + z_loss * z), weighted(nll), weighted(correct)


CASES = {
    "plain": ({}, 0.0, False),
    "z-loss": ({}, 1e-2, False),
    "bias": ({"head_bias": True}, 0.0, True),
    "divisor": ({"logit_divisor": 4.0}, 0.0, False),
    "soft cap": ({"logit_softcap": 3.0}, 0.0, False),
    "all": ({"logit_divisor": 2.0, "logit_softcap": 5.0, "head_bias": True}, 1e-2, True),
}


@pytest.mark.parametrize("limit", [ONE_CHUNK, CHUNKS])
@pytest.mark.parametrize("case", CASES)
def test_sums_and_gradients_are_those_of_log_softmax(case, limit):
    changes, z_loss, bias = CASES[case]
    arguments = inputs(bias=bias)
    x, kernel, bias_V, targets, weights = arguments
    wanted = (0, 1, 2) if bias else (0, 1)
    head_loss = partial(linear_cross_entropy, config=config(**changes), z_loss=z_loss, logits_bytes=limit)

    def chunked(x, kernel, bias_V):
        sums = head_loss(x, kernel, bias_V, targets, weights)
        return 3.0 * sums.loss, sums  # a cotangent other than 1

    def whole(x, kernel, bias_V):
        sums = naive(config(**changes), z_loss, x, kernel, bias_V, targets, weights)
        return 3.0 * sums[0], sums

    (_, sums), gradients = quick_jit(jax.value_and_grad(chunked, wanted, has_aux=True))(x, kernel, bias_V)
    (_, expected), expected_gradients = quick_jit(jax.value_and_grad(whole, wanted, has_aux=True))(x, kernel, bias_V)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    without_gradient = quick_jit(head_loss)(*arguments)
    np.testing.assert_allclose(without_gradient, sums, rtol=1e-6)


def test_tokens_without_weight_have_no_gradient():
    x, kernel, _, targets, weights = inputs(bias=False)
    head_loss = partial(linear_cross_entropy, config=config(), z_loss=1e-2, logits_bytes=CHUNKS)
    loss = lambda x, t: head_loss(x, kernel, None, t, weights).loss  # noqa: E731
    gradient = quick_jit(jax.grad(loss))(x, targets)
    loss = quick_jit(loss)
    assert not np.any(np.asarray(gradient)[np.asarray(weights) == 0])
    assert np.all(np.abs(np.asarray(gradient)[np.asarray(weights) > 0]).max(-1) > 0)
    other = jnp.where(weights == 0, (targets + 1) % V, targets)  # what stands under a zero weight does not matter
    np.testing.assert_array_equal(loss(x, other), loss(x, targets))


def test_huge_logits_stay_finite():
    x, kernel, _, targets, weights = inputs(bias=False)
    run = jax.value_and_grad(
        lambda x: linear_cross_entropy(x, kernel, None, targets, weights, config=config(), logits_bytes=CHUNKS).loss
    )
    loss, gradient = run(1e4 * x)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_bfloat16_states_keep_float32_sums_and_kernel_gradients():
    x, kernel, _, targets, weights = inputs(bias=False, dtype=jnp.bfloat16)

    def loss(x, kernel):
        sums = linear_cross_entropy(x, kernel, None, targets, weights, config=config(), logits_bytes=CHUNKS)
        return sums.loss, sums

    (dx, dkernel), sums = quick_jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
    assert dx.dtype == jnp.bfloat16 and dkernel.dtype == jnp.float32
    assert all(s.dtype == jnp.float32 for s in sums)
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    expected, gradients = quick_jit(
        jax.value_and_grad(lambda x, k: naive(config(), 0.0, x, k, None, targets, weights)[0], (0, 1))
    )(x.astype(jnp.float32), rounded)
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)  # the logits themselves are float32
    for gradient, expected_gradient in zip((dx, dkernel), gradients, strict=True):
        scale = float(jnp.abs(expected_gradient).max())
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, atol=0.02 * scale)


@given(tokens=st.integers(1, 10_000), vocab=st.integers(1, 300_000), limit=st.integers(1, 2**30))
@settings(deadline=None, max_examples=300)
def test_chunks_are_even_and_within_the_limit(tokens, vocab, limit):
    chunk = chunk_size(tokens, vocab, limit)
    pieces = -(-tokens // chunk)
    assert 1 <= chunk <= tokens
    assert chunk <= 128 or chunk * vocab * 4 <= limit
    assert pieces * chunk - tokens < pieces  # padding: less than one token a piece


def test_the_logits_of_all_tokens_are_never_held():
    """Temporary memory of value and gradient, as compiled, is far below [N, V] floats; a whole-logit loss is not."""
    tokens, dim, vocab = 4096, 16, 4096
    shapes = [
        jax.ShapeDtypeStruct((1, tokens, dim), jnp.float32),
        jax.ShapeDtypeStruct((dim, vocab), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens), jnp.float32),
    ]

    def temporary_bytes(loss):
        step = jax.jit(jax.value_and_grad(lambda x, k, t, w: loss(x, k, None, t, w), (0, 1)))
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole_logits = 4 * tokens * vocab
    limit = whole_logits // 16
    chunked = partial(linear_cross_entropy, config=config(), z_loss=1e-4, logits_bytes=limit)
    assert temporary_bytes(lambda *a: chunked(*a).loss) < whole_logits / 4
    assert temporary_bytes(lambda *a: naive(config(), 1e-4, *a)[0]) > whole_logits
