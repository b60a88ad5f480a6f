"""Rotary embeddings: relative, norm-preserving, and stretched as the reference implementations do; ALiBi's slopes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import RopeScaling
from slmjax.models.positions import alibi_slopes, rope_table, rotate

DIM, THETA = 64, 10_000.0
RNG = np.random.default_rng(0)
ORIGINAL = 512
SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", factor=4.0),
    "dynamic": RopeScaling("dynamic", factor=2.0, original_context_length=ORIGINAL),
    "llama3": RopeScaling("llama3", factor=32.0, original_context_length=ORIGINAL),
    "llama3, other bands": RopeScaling("llama3", 8.0, ORIGINAL, low_freq_factor=2.0, high_freq_factor=16.0),
    "yarn": RopeScaling("yarn", factor=4.0, original_context_length=ORIGINAL),
    "yarn, betas": RopeScaling("yarn", 2.0, ORIGINAL, beta_fast=8.0, beta_slow=2.0, attention_factor=1.5),
    "longrope": RopeScaling(
        "longrope",
        factor=8.0,
        original_context_length=ORIGINAL,
        short_factor=tuple(RNG.uniform(1, 2, DIM // 2).tolist()),
        long_factor=tuple(RNG.uniform(2, 9, DIM // 2).tolist()),
    ),
}


def angles_and_factor(scaling, length: int, dim: int = DIM, theta: float = THETA) -> tuple[np.ndarray, float]:
    """Frequencies [dim / 2] (the angle at position 1) and the factor on cos and sin, of `length` positions."""
    cos, sin = (np.asarray(t, np.float64) for t in rope_table(jnp.arange(length)[None], dim, theta, scaling))
    np.testing.assert_allclose(np.hypot(cos, sin), np.hypot(cos, sin)[0, 0, 0], rtol=1e-6)
    return np.arctan2(sin[0, 1], cos[0, 1]), float(np.hypot(cos, sin)[0, 0, 0])


@pytest.mark.parametrize("length", [64, 3 * ORIGINAL])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name, length):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rope_functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    scaling = SCALINGS[name]
    parameters = {"rope_type": "default", "rope_theta": THETA}
    if scaling is not None:
        fields = {"factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"}
        values = {field: getattr(scaling, field) for field in fields if getattr(scaling, field) is not None}
        parameters |= values | {"rope_type": scaling.kind, "original_max_position_embeddings": ORIGINAL}
        parameters |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
    config = transformers.LlamaConfig(
        hidden_size=DIM, num_attention_heads=1, max_position_embeddings=ORIGINAL, rope_parameters=parameters
    )
    if scaling is None:
        expected, factor = THETA ** -(torch.arange(0, DIM, 2) / DIM), 1.0
    else:
        expected, factor = rope_functions[scaling.kind](config, "cpu", seq_len=length)
    frequencies, own_factor = angles_and_factor(scaling, length)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=2e-6)
    assert own_factor == pytest.approx(factor, rel=1e-6)


def test_frequencies_by_hand():
    """The plain table, and Llama 3's three bands: long waves divided, short waves kept, a blend between."""
    inv_freq = THETA ** -(np.arange(0, DIM, 2) / DIM)
    np.testing.assert_allclose(angles_and_factor(None, 4)[0], inv_freq, rtol=1e-6)
    np.testing.assert_allclose(angles_and_factor(SCALINGS["linear"], 4)[0], inv_freq / 4, rtol=1e-6)
    scaled = angles_and_factor(SCALINGS["llama3"], 4)[0]
    wavelength = 2 * math.pi / inv_freq
    long, short = wavelength > ORIGINAL, wavelength < ORIGINAL / 4
    np.testing.assert_allclose(scaled[long], inv_freq[long] / 32, rtol=1e-6)
    np.testing.assert_allclose(scaled[short], inv_freq[short], rtol=1e-6)
    between = ~long & ~short
    assert between.any()
    assert ((scaled > inv_freq / 32) & (scaled < inv_freq))[between].all()


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_the_switch_lies_just_beyond_the_original_context(name):
    at, beyond = (angles_and_factor(SCALINGS[name], n)[0] for n in (ORIGINAL, ORIGINAL + 1))
    short = angles_and_factor(SCALINGS[name], 2)[0]
    np.testing.assert_array_equal(at, short)
    assert (beyond < at * (1 - 1e-7))[1:].all()


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_each_document_switches_for_itself(name):
    """A long row beside a short one, a long document packed with a short one, left padding: each as if alone."""

    def table(positions):
        return [np.asarray(t) for t in rope_table(jnp.asarray(positions), DIM, THETA, SCALINGS[name])]

    n = 40
    long, short = np.arange(ORIGINAL + n), np.arange(n)
    for alone, other in ((long, short), (short, long)):
        expected = table(alone[None])
        padded = np.concatenate([np.zeros(len(long) - len(alone), int), alone])
        beside = table(np.stack([padded, np.arange(len(long))]))
        before, after = table(np.concatenate([alone, other])[None]), table(np.concatenate([other, alone])[None])
        for want, *got in zip(expected, beside, before, after, strict=True):
            np.testing.assert_array_equal(got[0][0, -len(alone) :], want[0])
            np.testing.assert_array_equal(got[1][0, : len(alone)], want[0])
            np.testing.assert_array_equal(got[2][0, len(other) :], want[0])
    newest = [t[0, -1] for t in table(long[None])]
    for want, got in zip(newest, table(np.asarray([[3], [long[-1]]])), strict=True):  # a decoding step
        np.testing.assert_array_equal(got[1, 0], want)


@pytest.mark.parametrize("rotary_dim", [DIM, 16])
def test_scores_depend_on_the_distance_alone(rotary_dim):
    q, k = (jnp.asarray(np.random.default_rng(i).standard_normal((1, 1, 1, DIM)), jnp.float32) for i in (1, 2))

    def score(i, j):
        tables = (rope_table(jnp.asarray([[p]]), rotary_dim, THETA, None) for p in (i, j))
        return float(jnp.sum(rotate(q, next(tables)) * rotate(k, next(tables))))

    assert score(3, 1) == pytest.approx(score(103, 101), abs=2e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2


def test_rotation_keeps_lengths_and_leaves_the_rest_alone():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 5, 3, DIM)), jnp.float32)
    table = rope_table(jnp.tile(jnp.arange(5), (2, 1)), 16, THETA, None)
    y = rotate(x, table)
    np.testing.assert_array_equal(y[..., 16:], x[..., 16:])
    np.testing.assert_array_equal(y[:, 0], x[:, 0])  # position 0 does not turn
    pairs = lambda a: np.hypot(a[..., :8], a[..., 8:16])  # noqa: E731  dimension i with i + 8: the half-split layout
    np.testing.assert_allclose(pairs(y), pairs(x), rtol=1e-5)
    assert np.abs(y[:, 1, :, :16] - x[:, 1, :, :16]).max() > 0.1
    assert rotate(x.astype(jnp.bfloat16), table).dtype == jnp.bfloat16


def test_tables_are_float32_at_far_positions():
    """A bfloat16 position is wrong by whole turns at 100,000."""
    cos, _ = jax.jit(lambda p: rope_table(p, DIM, 1e6, None))(jnp.asarray([[100_000]]))
    assert cos.dtype == jnp.float32
    expected = np.cos(100_000 * 1e6 ** -(np.arange(0, DIM, 2) / DIM))
    np.testing.assert_allclose(cos[0, 0], expected, atol=0.01)


@pytest.mark.parametrize("num_heads", [1, 8, 12, 16, 25, 32, 71])
def test_alibi_slopes_are_those_of_transformers(num_heads):
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    mask = torch.ones(1, 2)
    bias = bloom.build_alibi_tensor(mask, num_heads, torch.float32)  # slope * position
    np.testing.assert_allclose(alibi_slopes(num_heads), bias[:, 0, 1].numpy(), rtol=1e-6)


def test_alibi_slopes_of_eight_heads_are_powers_of_a_half():
    np.testing.assert_allclose(alibi_slopes(8), 0.5 ** np.arange(1, 9))
