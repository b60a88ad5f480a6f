"""Every attention backend against the definition, and documents that must not see each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.attention.contract import Mask, Scores
from slmjax.models.attention.cudnn import cudnn_attention
from slmjax.models.attention.kernels import WithFallback, attention_for
from slmjax.models.attention.splash import SplashAttention, splash_attention
from slmjax.models.attention.xla import XlaAttention, xla_attention
from slmjax.models.positions import alibi_slopes

B, T, H, K = 2, 256, 4, 64
NOTHING = {"window": None, "softcap": None, "slopes_H": None}


def call(attention, q, k, v, *, q_segments_BT, kv_segments_BS, q_offset, scale, window, softcap, slopes_H):
    """Attention of one whole sequence (q_offset 0) or of queries at an offset."""
    offset = None if isinstance(q_offset, int) and q_offset == 0 else q_offset
    mask = Mask(q_segments_BT, kv_segments_BS, window, offset)
    return attention(q, k, v, mask, Scores(scale, softcap, slopes_H))


def definition(q, k, v, *, q_segments_BT, kv_segments_BS, q_offset, scale, window, softcap, slopes_H):
    """Row by row in float64, with no thought of speed."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        i, g = q_offset + t, h // (q.shape[2] // k.shape[2])
        visible = [j for j in range(k.shape[1]) if j <= i and (window is None or i - window < j)]
        if q_segments_BT is not None:
            visible = [j for j in visible if kv_segments_BS[b, j] == q_segments_BT[b, t]]
        logits = k[b, visible, g] @ q[b, t, h] * scale
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        if slopes_H is not None:
            logits = logits - slopes_H[h] * (i - np.asarray(visible))
        weights = np.exp(logits - logits.max())
        out[b, t, h] = weights / weights.sum() @ v[b, visible, g]
    return out


def inputs(B=B, T=T, H=H, G=2, K=K, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal((B, T, n, K)), dtype) for n in (H, G, G))


def three_documents(B=B, T=T, seed=1):
    """Segments [B, T] of three documents a row, cut at random places."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, T), (B, 2)), axis=1)
    return jnp.asarray(1 + (np.arange(T) >= cuts[:, :1]) + (np.arange(T) >= cuts[:, 1:]), jnp.int32)


VARIANTS = {
    "causal": {},
    "window": {"window": 5},
    "window 1": {"window": 1},
    "window beyond the sequence": {"window": 99},
    "soft cap": {"softcap": 2.0},
    "alibi": {"slopes_H": alibi_slopes(H)},
    "all": {"window": 7, "softcap": 2.0, "slopes_H": alibi_slopes(H)},
}


@pytest.mark.parametrize(("kv_heads", "segments"), [(1, False), (2, True), (4, False)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_xla_is_the_definition(variant, segments, kv_heads, quick_jit):
    """In one block and in blocks of 4 queries, the last one short; the window counts the query itself."""
    q, k, v = inputs(T=15, G=kv_heads, K=8)
    ids = three_documents(T=15) if segments else None
    arguments = {
        "q_segments_BT": ids,
        "kv_segments_BS": ids,
        "q_offset": 0,
        "scale": 0.3,
        **NOTHING,
        **VARIANTS[variant],
    }
    expected = definition(q, k, v, **arguments)
    for block_size in (128, 4):
        run = quick_jit(partial(call, XlaAttention(block_size), **arguments))
        np.testing.assert_allclose(run(q, k, v), expected, atol=2e-6)


@pytest.mark.parametrize("window", [None, 4])
def test_xla_of_queries_at_an_offset_is_the_definition(window):
    """A decoding step: 3 queries at index 6 of a cache of 12, whose end is not yet written."""
    q, _, _ = inputs(T=3, K=8)
    _, k, v = inputs(T=12, K=8)
    kv_segments = jnp.asarray([[1] * 9 + [0] * 3, [0] * 2 + [1] * 7 + [0] * 3], jnp.int32)
    ones = jnp.ones((B, 3), jnp.int32)
    arguments = {"q_segments_BT": ones, "kv_segments_BS": kv_segments, "scale": 0.3, **NOTHING, "window": window}
    expected = definition(q, k, v, **arguments, q_offset=6)
    for offset in (6, jnp.asarray(6)):
        np.testing.assert_allclose(call(xla_attention, q, k, v, **arguments, q_offset=offset), expected, atol=2e-6)


def test_long_rows_stay_a_small_program():
    """At most 16 blocks, however long the context."""
    shape = jax.ShapeDtypeStruct((1, 8192, 1, 8), jnp.float32)
    run = partial(call, xla_attention, q_segments_BT=None, kv_segments_BS=None, q_offset=0, scale=1.0, **NOTHING)
    text = str(jax.make_jaxpr(run)(shape, shape, shape))
    assert text.count("dot_general") == 2 * 16


def test_a_whole_sequence_has_as_many_keys_as_queries():
    q, k, v = inputs(T=8, K=8)
    with pytest.raises(ValueError, match="3 queries over 8 keys are not a whole sequence"):
        xla_attention(q[:, :3], k, v, Mask(), Scores(1.0))


@pytest.fixture
def splash():
    """The splash kernel in Pallas's interpreter, without a way out to XLA."""
    return SplashAttention(interpret=True)


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN's call with XLA in the kernel's place, so that mask, bias, window and scale are those it is given."""
    attention = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return attention(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return cudnn_attention


SPLASH_CASES = {
    "causal": ({}, 4, 64, False),
    "GQA, segments": ({}, 2, 64, True),
    "MQA, head_dim 128, soft cap": ({"softcap": 2.0}, 1, 128, False),
    "window across blocks, segments": ({"window": 100}, 2, 64, True),
    "window of 1": ({"window": 1}, 2, 64, False),
    "Gemma-2's": ({"window": 130, "softcap": 3.0}, 2, 64, True),
}


@pytest.mark.parametrize("case", SPLASH_CASES)
def test_splash_is_xla_and_so_are_its_gradients(splash, case, quick_jit):
    changes, kv_heads, head_dim, segments = SPLASH_CASES[case]
    q, k, v = inputs(H=4 if kv_heads == 4 else 2 * kv_heads, G=kv_heads, K=head_dim)
    ids = three_documents() if segments else None
    arguments = {"q_segments_BT": ids, "kv_segments_BS": ids, "q_offset": 0, "scale": 0.2, **NOTHING, **changes}
    probe = jnp.asarray(np.random.default_rng(4).standard_normal(q.shape), jnp.float32)

    def run(attention):
        def loss(q, k, v):
            out = call(attention, q, k, v, **arguments)
            return jnp.sum(out * probe), out

        return quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    (gradients, out), (expected_gradients, expected) = run(splash), run(xla_attention)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


def test_splash_supports_what_it_can():
    q, _, _ = inputs()
    whole, plain = Mask(), Scores(0.3)
    assert splash_attention.supports(whole, plain, q)
    assert not splash_attention.supports(Mask(offset=jnp.asarray(0)), plain, q)  # a decoding step
    assert not splash_attention.supports(Mask(offset=0), plain, q[:, :1])
    assert not splash_attention.supports(Mask(prefix=4), plain, q)
    assert not splash_attention.supports(whole, plain, q[:, :200])
    assert not splash_attention.supports(whole, Scores(0.3, slopes=alibi_slopes(H)), q)
    assert splash_attention.supports(whole, plain, q, shards=2)
    assert not splash_attention.supports(whole, plain, q, shards=4)


@pytest.mark.parametrize("backend", [splash_attention, cudnn_attention], ids=["splash", "cudnn"])
@pytest.mark.parametrize("changes", [{"softcap": 2.0}, {"slopes_H": alibi_slopes(H)}, {}])
def test_what_a_backend_cannot_is_xlas(backend, changes):
    q, k, v = inputs(T=20, K=8)  # off splash's grid, and float32, which cuDNN's kernel does not take
    ids = three_documents(T=20)
    arguments = {"q_segments_BT": ids, "kv_segments_BS": ids, "q_offset": 0, "scale": 0.3, **NOTHING, **changes}
    expected = call(xla_attention, q, k, v, **arguments)
    np.testing.assert_array_equal(call(WithFallback(backend), q, k, v, **arguments), expected)


@pytest.mark.parametrize("changes", [{}, {"window": 9}, {"window": 1}])
@pytest.mark.parametrize("segments", [False, True])
def test_what_cudnn_is_asked_for_is_the_definition(cudnn, changes, segments):
    q, k, v = inputs(T=32, K=8, dtype=jnp.bfloat16)
    ids = three_documents(T=32) if segments else None
    arguments = {"q_segments_BT": ids, "kv_segments_BS": ids, "q_offset": 0, "scale": 0.3, **NOTHING, **changes}
    np.testing.assert_allclose(
        call(cudnn, q, k, v, **arguments).astype(jnp.float32), definition(q, k, v, **arguments), atol=0.03
    )


def test_cudnn_supports_what_it_can():
    half, single = inputs(T=32, K=8, dtype=jnp.bfloat16)[0], inputs(T=32, K=8)[0]
    assert cudnn_attention.supports(Mask(window=3), Scores(0.3), half)
    assert not cudnn_attention.supports(Mask(), Scores(0.3), single)
    assert not cudnn_attention.supports(Mask(), Scores(0.3, softcap=2.0), half)
    assert not cudnn_attention.supports(Mask(), Scores(0.3, slopes=alibi_slopes(H)), half)
    assert not cudnn_attention.supports(Mask(offset=jnp.asarray(0)), Scores(0.3), half)
    assert not cudnn_attention.supports(Mask(prefix=2), Scores(0.3), half)
    assert not cudnn_attention.supports(Mask(), Scores(0.3), half, shards=2)


@pytest.mark.parametrize(("T", "K"), [(31, 8), (32, 12), (32, 264)])
def test_cudnn_leaves_sizes_to_xla_that_jax_refuses(T, K):
    """An odd length, a head off the grid of 8, a head beyond 256: jax raises where cuDNN is asked for them."""
    q, k, v = inputs(T=T, K=K, dtype=jnp.bfloat16)
    ids = three_documents(T=T)
    arguments = {"q_segments_BT": ids, "kv_segments_BS": ids, "q_offset": 0, "scale": 0.3, **NOTHING}
    np.testing.assert_array_equal(
        call(WithFallback(cudnn_attention), q, k, v, **arguments).astype(jnp.float32),
        call(xla_attention, q, k, v, **arguments).astype(jnp.float32),
    )


@pytest.mark.parametrize("backend", ["xla", "splash", "cudnn"])
@pytest.mark.parametrize("window", [None, 150])
def test_packing_isolation(request, backend, window, quick_jit):
    """Change document 1: document 2 does not move, neither forward nor in the gradient that flows to document 1."""
    attention = xla_attention if backend == "xla" else request.getfixturevalue(backend)
    dtype = jnp.bfloat16 if backend == "cudnn" else jnp.float32
    first = inputs(dtype=dtype)
    cut = 100
    other = inputs(seed=9, dtype=dtype)
    second = tuple(jnp.concatenate([o[:, :cut], f[:, cut:]], axis=1) for o, f in zip(other, first, strict=True))
    ids = jnp.broadcast_to(1 + (jnp.arange(T) >= cut), (B, T)).astype(jnp.int32)
    run = partial(
        call, attention, q_segments_BT=ids, kv_segments_BS=ids, q_offset=0, scale=0.125, **NOTHING | {"window": window}
    )

    def last_document(q, k, v):
        out = run(q, k, v)
        return jnp.sum(jnp.square(out[:, cut:].astype(jnp.float32))), out

    step = quick_jit(jax.grad(last_document, argnums=(0, 1, 2), has_aux=True))
    (gradients, out), (_, moved) = step(*first), step(*second)
    assert jnp.abs(out[:, :cut] - moved[:, :cut]).max() > 0.1
    np.testing.assert_array_equal(out[:, cut:].astype(jnp.float32), moved[:, cut:].astype(jnp.float32))
    for gradient in gradients:
        assert not np.any(np.asarray(gradient[:, :cut], np.float32))
        assert np.any(np.asarray(gradient[:, cut:], np.float32))


def test_platforms_have_their_kernels():
    assert attention_for("cpu") is xla_attention
    assert attention_for("tpu") == WithFallback(splash_attention)
    assert attention_for("gpu") == WithFallback(cudnn_attention)
    assert attention_for("tpu", "xla") is xla_attention
    with pytest.raises(UserError, match="'flash' is not known: choose one of auto, xla, splash, cudnn"):
        attention_for("gpu", "flash")
