"""The form that a CPU decodes is the same network."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.kv_cache import empty_cache
from slmjax.models.linear import cast_weights
from slmjax.models.transformer import Transformer
from slmjax.models.unstacked import unstack
from tests.models.conftest import CORE, miniatures

B, T, PREFILL = 3, 10, 6
PADS = np.array([0, 1, 4])
SIZES = {"vocab_size": 31, "num_layers": 4, "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 24}
UNTIED = ModelConfig(**SIZES, window=4, layer_pattern=("local", "global"), tie_embeddings=False)


@pytest.fixture(scope="module")
def stacked_logits(random_params, quick_jit):
    """(config, inputs) -> logits of the stacked network, computed once for both layouts."""
    found = {}

    def compute(config, *inputs):
        if config not in found:
            found[config] = np.asarray(quick_jit(Transformer(config).apply)({"params": random_params(config)}, *inputs))
        return found[config]

    return compute


# Both layouts on the networks that differ in kind, on all others the one that decodes a single row; quick is that one
# on the former.
NETWORKS = [
    pytest.param(
        config,
        layout,
        id=f"{name} {layout}",
        marks=[] if name in CORE and layout == "fused" else [pytest.mark.slow],
    )
    for name, config in miniatures().items()
    for layout in (("unstacked", "fused") if name in CORE else ("fused",))
]


@pytest.mark.parametrize(("network", "layout"), NETWORKS)
def test_unstacked_layers_prefill_and_decode_what_the_stack_computes(
    network, layout, stacked_logits, random_params, quick_jit
):
    """Whole sequences, a prefill that is known to be the first, and steps of a left-padded batch."""
    tokens_BT = np.random.default_rng(5).integers(0, network.vocab_size, (B, T))
    positions_BT = np.maximum(np.arange(T) - PADS[:, None], 0)
    segments_BT = (np.arange(T) >= PADS[:, None]).astype(np.int32)
    params = random_params(network)
    stacked = Transformer(network)
    apart = Transformer(network, dataclasses.replace(stacked.execution, layout=layout))
    variables = {"params": unstack(network, params, jnp.float32, layout=layout)}
    full_BTV = stacked_logits(network, tokens_BT, positions_BT, segments_BT)
    whole_BTV = quick_jit(apart.apply)(variables, tokens_BT, positions_BT, segments_BT)

    def prefill(variables, *inputs):
        cache = empty_cache(network, B, T + 3, jnp.float32, stacked=False).replace(index=0)
        return apart.apply(variables, *inputs, cache, method="logits")

    parts = [array[:, :PREFILL] for array in (tokens_BT, positions_BT, segments_BT)]
    logits_BTV, cache = quick_jit(prefill)(variables, *parts)
    outputs, step = [logits_BTV], quick_jit(partial(apart.apply, method="logits"))
    for t in range(PREFILL, T):
        parts = [array[:, t : t + 1] for array in (tokens_BT, positions_BT, segments_BT)]
        logits_BTV, cache = step(variables, *parts, cache)
        outputs.append(logits_BTV)
    decoded_BTV = np.concatenate(outputs, axis=1)
    for b, pad in enumerate(PADS):
        for got in (whole_BTV, decoded_BTV):
            np.testing.assert_allclose(got[b, pad:], full_BTV[b, pad:], atol=5e-5, rtol=1e-4)


def test_every_weight_is_taken_once_and_kernels_are_transposed(random_params):
    params = random_params(UNTIED)
    apart = unstack(UNTIED, params, jnp.float32)
    assert sum(leaf.size for leaf in jax.tree.leaves(apart)) == sum(leaf.size for leaf in jax.tree.leaves(params))
    kernel = params["segment_0"]["block_0"]["attention"]["q_proj"]["kernel"]
    for i, layer in enumerate(apart["segment_0"]):
        np.testing.assert_array_equal(layer["block_0"]["attention"]["q_proj"]["kernel"], kernel[i].T)
    np.testing.assert_array_equal(apart["lm_head"]["kernel"], params["lm_head"]["kernel"].T)


def test_fused_kernels_are_those_of_the_parts_side_by_side(random_params):
    params = random_params(UNTIED)
    fused = unstack(UNTIED, params, jnp.float32, layout="fused")
    assert sum(leaf.size for leaf in jax.tree.leaves(fused)) == sum(leaf.size for leaf in jax.tree.leaves(params))
    parts = params["segment_0"]["block_0"]["attention"]
    for i, layer in enumerate(fused["segment_0"]):
        whole = np.concatenate([parts[f"{name}_proj"]["kernel"][i] for name in "qkv"], axis=-1)
        np.testing.assert_array_equal(layer["block_0"]["attention"]["qkv_proj"]["kernel"], whole)


def test_matrices_alone_are_cast(random_params):
    def dtypes(tree):
        return {str(path[-1].key): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    params = random_params(UNTIED)
    for cast in (unstack(UNTIED, params, jnp.bfloat16), cast_weights(params, jnp.bfloat16)):
        kinds = dtypes(cast)
        assert kinds.pop("kernel") == kinds.pop("embedding") == jnp.bfloat16
        assert set(kinds.values()) <= {jnp.dtype(jnp.float32)}


def test_the_unstacked_cache_takes_the_same_bytes():
    def count(stacked):
        cache = jax.eval_shape(lambda: empty_cache(UNTIED, 2, 16, jnp.float32, stacked=stacked))
        return sum(leaf.size for leaf in jax.tree.leaves(cache.layers))

    assert count(True) == count(False)


def test_layouts_that_are_not_there_are_refused(random_params):
    params = random_params(UNTIED)
    with pytest.raises(ValueError, match="'stacked', not"):
        unstack(UNTIED, params, jnp.float32, layout="stacked")
    model = Transformer(UNTIED, Execution(layout="fused"))
    variables = {"params": unstack(UNTIED, params, jnp.float32, layout="fused")}
    added = {"segment_0": {"block_0": {"attention": {"q_proj": {"ia3_output": jnp.ones((2, 16))}}}}}
    with pytest.raises(ValueError, match="finds products by name"):
        model.apply(variables | {"peft": unstack(UNTIED, added, jnp.float32)}, jnp.zeros((1, 3), jnp.int32))
