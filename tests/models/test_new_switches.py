"""ALiBi's largest bias, and queries and keys with gains of each head's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.normalization import Norm

SIZE = {"vocab_size": 11, "num_layers": 1, "embed_dim": 8, "num_heads": 4, "ffn_dim": 16}


def test_the_largest_bias_counts_under_alibi_alone():
    for position, known in (("alibi", {"alibi_max_bias"}), ("rope", set())):
        one, other = (ModelConfig(**SIZE, position=position, alibi_max_bias=bias) for bias in (8.0, 16.0))
        assert set(one.differences(other)) == known
    with pytest.raises(UserError, match=r"model.alibi_max_bias=0 must be above 0"):
        ModelConfig(**SIZE, alibi_max_bias=0)


def test_each_head_has_its_own_gain():
    """A norm of heads is as many norms of one head."""
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    norm, of_one = Norm(kind="layer", heads=4), Norm(kind="layer")
    shape = jax.eval_shape(norm.init, jax.random.key(0), x)["params"]["scale"].shape
    assert shape == (20,)
    got = norm.apply({"params": {"scale": jnp.asarray(scale.reshape(-1))}}, x)
    for head in range(4):
        expected = of_one.apply({"params": {"scale": jnp.asarray(scale[head])}}, x[:, :, head])
        np.testing.assert_allclose(got[:, :, head], expected, rtol=1e-6)
