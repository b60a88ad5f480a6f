"""Attention over the cache against `xla_attention`, and how much of the cache it reads."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.attention import cached as attention_cached
from slmjax.models.attention.cached import cached_attention
from slmjax.models.attention.contract import Mask, Scores
from slmjax.models.attention.xla import xla_attention
from slmjax.models.positions import alibi_slopes

B, H, G, K, S = 2, 4, 2, 8, 37
PADS = np.array([0, 5])
VARIANTS = {
    "causal": {"window": None, "softcap": None, "slopes": None},
    "window": {"window": 6, "softcap": None, "slopes": None},
    "all": {"window": 11, "softcap": 2.0, "slopes": alibi_slopes(H)},
}


def inputs(T, index):
    """Queries at index..index+T-1 of left-padded rows; what lies behind them in the cache is NaN-free rubbish."""
    rng = np.random.default_rng(index)
    q, k, v = (jnp.asarray(rng.standard_normal((B, n, heads, K)), jnp.float32) for n, heads in ((T, H), (S, G), (S, G)))
    segments_BS = jnp.asarray((np.arange(S) >= PADS[:, None]) & (np.arange(S) < index + T), jnp.int32)
    return q, k, v, {"q_segments_BT": jnp.ones((B, T), jnp.int32), "kv_segments_BS": segments_BS, "scale": 0.3}


def attend(attention, q, k, v, offset, *, q_segments_BT, kv_segments_BS, window, scale, softcap, slopes):
    mask = Mask(q_segments_BT, kv_segments_BS, window, offset)
    return attention(q, k, v, mask, Scores(scale, softcap, slopes))


@pytest.mark.parametrize("block", [4, 7, 256], ids="blocks of {}".format)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("T", "index"), [(1, 5), (1, 36), (3, 20)])
def test_blocks_of_keys_change_nothing(variant, block, T, index, quick_jit, monkeypatch):
    monkeypatch.setattr(attention_cached, "BLOCK", block)
    q, k, v, shared = inputs(T, index)
    shared |= VARIANTS[variant]
    expected = attend(xla_attention, q, k, v, index, **shared)
    run = quick_jit(partial(attend, cached_attention, **shared))
    got = run(q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.int32(index))
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(("window", "first"), [(None, 0), (6, 12)])
def test_only_blocks_that_can_be_seen_are_read(window, first, quick_jit, monkeypatch):
    """NaN in a key or value that is read reaches the result, masked or not."""
    monkeypatch.setattr(attention_cached, "BLOCK", 4)
    q, k, v, shared = inputs(1, 20)
    poisoned = np.full(S, True)
    poisoned[first:24] = False
    shared |= {**VARIANTS["causal"], "window": window}
    run = quick_jit(partial(attend, cached_attention, **shared))
    clean, bad = (
        run(q, *(jnp.where(spoiled, jnp.nan, x).swapaxes(1, 2) for x in (k, v)), jnp.int32(20))
        for spoiled in (False, poisoned[None, :, None, None])
    )
    np.testing.assert_array_equal(clean, bad)
