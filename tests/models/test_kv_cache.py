"""Decoding with the cache gives what the whole forward pass gives."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.counting import kv_cache_bytes
from slmjax.models.families.registry import FAMILIES, model_config
from slmjax.models.kv_cache import LayerCache, empty_cache
from slmjax.models.transformer import Transformer

B, T, PREFILL = 3, 10, 6
PADS = np.array([0, 1, 4])  # left padding of each row; one is longer than the miniatures' window


def test_prefill_and_steps_of_a_left_padded_batch_equal_the_full_forward(config, random_params, quick_jit):
    tokens_BT = np.random.default_rng(5).integers(0, config.vocab_size, (B, T))
    positions_BT = np.maximum(np.arange(T) - PADS[:, None], 0)
    segments_BT = (np.arange(T) >= PADS[:, None]).astype(np.int32)
    variables = {"params": random_params(config)}
    model = Transformer(config)
    full_BTV = quick_jit(model.apply)(variables, tokens_BT, positions_BT, segments_BT)

    apply = quick_jit(partial(model.apply, method="logits"))
    cache = empty_cache(config, B, T + 3, jnp.float32)  # longer than what is written
    logits_BTV, cache = apply(
        variables, tokens_BT[:, :PREFILL], positions_BT[:, :PREFILL], segments_BT[:, :PREFILL], cache
    )
    outputs = [logits_BTV]
    for t in range(PREFILL, T):
        logits_BTV, cache = apply(
            variables, tokens_BT[:, t : t + 1], positions_BT[:, t : t + 1], segments_BT[:, t : t + 1], cache
        )
        outputs.append(logits_BTV)
    decoded_BTV = np.concatenate(outputs, axis=1)
    assert int(cache.index) == T
    for b, pad in enumerate(PADS):
        np.testing.assert_allclose(decoded_BTV[b, pad:], full_BTV[b, pad:], atol=5e-5, rtol=1e-4)


def test_without_positions_and_segments_the_cache_counts_on(random_params, quick_jit):
    sizes = {"vocab_size": 31, "num_layers": 1, "embed_dim": 16, "ffn_dim": 8, "head_dim": 8}
    config = dataclasses.replace(model_config("gpt2"), num_heads=2, num_kv_heads=2, **sizes)
    variables, tokens = {"params": random_params(config)}, np.arange(12).reshape(2, 6)
    apply = quick_jit(partial(Transformer(config).apply, method="logits"))
    first, cache = apply(variables, tokens[:, :4], cache=empty_cache(config, 2, 6, jnp.float32))
    second, cache = apply(variables, tokens[:, 4:], cache=cache)
    whole, no_cache = apply(variables, tokens)
    assert no_cache is None
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-5)
    np.testing.assert_array_equal(cache.segments_BS, np.ones((2, 6)))


@pytest.mark.parametrize("name", [next(iter(sizes)) for _, sizes in FAMILIES.values()])
def test_the_cache_takes_the_bytes_that_are_counted(name):
    config = model_config(name)
    layers = jax.eval_shape(lambda: empty_cache(config, 2, 16, jnp.bfloat16)).layers
    allocated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(layers))
    assert allocated == kv_cache_bytes(config, 16, batch_size=2, bytes_per_value=2)


def test_a_layers_cache_reads_what_was_written_in_either_layout():
    rng = np.random.default_rng(0)
    k, v, prefix = (jnp.asarray(rng.standard_normal((2, n, 3, 4)), jnp.float32) for n in (5, 5, 2))
    stacked = LayerCache(jnp.zeros((6, 2, 9, 3, 4)), jnp.zeros((6, 2, 9, 3, 4)), True)
    apart = LayerCache(jnp.zeros((2, 3, 9, 4)), jnp.zeros((2, 3, 9, 4)), False)
    assert stacked.length == apart.length == 9
    assert apart.reads_in_blocks and not stacked.reads_in_blocks
    written = {
        "stacked": (stacked.with_prefix(jnp.stack([prefix] * 6), jnp.stack([prefix] * 6)).write(k, v, 3, 4), 4),
        "one for all rows": (stacked.with_prefix(jnp.stack([prefix[0]] * 6), prefix[None, 0]).write(k, v, 3, 4), 4),
        "unstacked": (apart.with_prefix(prefix, prefix).write(k, v, 3, None), None),
    }
    for name, (cache, repeat) in written.items():
        keys, values = cache.read(repeat)
        np.testing.assert_array_equal(keys[:, 3:8], k)
        np.testing.assert_array_equal(values[:, 3:8], v)
        assert not np.any(keys[:, [2, 8]]) and not np.any(values[:, [2, 8]])
        first = prefix if name != "one for all rows" else np.broadcast_to(prefix[0], prefix.shape)
        np.testing.assert_array_equal(keys[:, :2], first)
        np.testing.assert_array_equal(values[:, :2], first)
    others = written["stacked"][0].read(3)[0]
    assert not np.any(others[:, 3:])
