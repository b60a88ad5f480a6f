"""Cutting parameters in two, layer-wise learning rates, block expansion, and which base it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import flatten
from slmjax.models.transformer import Transformer
from slmjax.peft.fingerprint import fingerprint, require_same_model
from slmjax.peft.methods.expansion import expand
from tests.tiny import largest

SMALL = ModelConfig(vocab_size=61, num_layers=4, embed_dim=16, num_heads=4, num_kv_heads=2, ffn_dim=24)
ALTERNATING = dataclasses.replace(SMALL, layer_pattern=("local", "global"), window=3)
QKV_BIAS = dataclasses.replace(SMALL, attention_output_bias=True, ffn_bias=True, norm="layer", norm_bias=True)
TAPERED = dataclasses.replace(SMALL, ffn_dim=(16, 16, 24, 24))


@pytest.mark.parametrize(
    ("peft", "layers"),
    [
        ({"freeze": {"last_layers": 1}}, {3}),
        ({"freeze": {"first_layers": 1, "last_layers": 1}}, {0, 3}),
        ({"train": ("layers/[12]/.*",)}, {1, 2}),
        ({"train": ("layers/1/.*",), "freeze": {"last_layers": 1}}, {1, 3}),
    ],
)
@pytest.mark.parametrize("network", [SMALL, ALTERNATING], ids=["one stack", "two stacks"])
def test_the_layers_that_are_named_are_trained_and_the_parts_make_up_the_base(peft, layers, network, tune):
    tuned = tune(model=network, method="freeze", **peft)
    sizes = {path: leaf.size for path, leaf in flatten(tuned.base).items() if path.startswith("segment_")}
    share = sum(leaf.size for leaf in jax.tree.leaves(tuned.trained)) / sum(sizes.values())
    assert share == len(layers) / 4
    variables = tuned.method.variables(tuned.trained, tuned.frozen)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], tuned.base)


@pytest.mark.parametrize("network", [SMALL, ALTERNATING], ids=["one stack", "two stacks"])
@pytest.mark.parametrize("method", ["full", "freeze"])
def test_layer_decay_slows_lower_layers(network, method, tune):
    tuned = tune(model=network, method=method, layer_decay=0.5, freeze={"last_layers": 2})
    factors = tuned.method.multipliers(tuned.trained)
    params = factors["params"]
    blocks = [block["attention"]["q_proj"]["kernel"].ravel() for block in params["segment_0"].values()]
    found = sorted(float(x) for block in blocks for x in block)
    assert found == ([0.125, 0.25, 0.5, 1.0] if method == "full" else [0.5, 1.0])
    if method == "full":
        assert params["final_norm"]["scale"] == 1 and params["embedder"]["embedding"] == 0.0625
    jax.tree.map(lambda x, f: np.broadcast_shapes(x.shape, np.shape(f)), tuned.trained, factors)


def test_lora_plus_is_a_larger_rate_for_b(tune):
    tuned = tune(method="lora", lora={"r": 2, "loraplus_lr_ratio": 16.0}, train=("final_norm/scale",))
    factors = flatten(tuned.method.multipliers(tuned.trained))
    assert {path.rpartition("/")[2]: float(f) for path, f in factors.items()} == {"lora_a": 1, "lora_b": 16, "scale": 1}


@pytest.mark.parametrize("network", [SMALL, QKV_BIAS, TAPERED], ids=["llama", "biases", "tapered"])
def test_an_expanded_network_is_the_base_until_it_is_trained(network, tune, jit):
    base = tune(model=network, method="full").base
    larger, params, new = expand(network, base, 2)
    assert larger.num_layers == 6 and new == (2, 5)
    shapes = jax.eval_shape(Transformer(larger).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7)
    expected = jit(lambda p: Transformer(network).apply({"params": p}, tokens))(base)
    found = jit(lambda p: Transformer(larger).apply({"params": p}, tokens))(params)
    np.testing.assert_allclose(found, expected, atol=1e-5 * largest(expected))


@pytest.mark.parametrize(
    ("network", "count", "message"),
    [
        (SMALL, 3, "divisor of 4"),
        (ALTERNATING, 2, "pattern"),
        (dataclasses.replace(SMALL, norm_placement="post"), 2, "no layer that can start as the identity"),
    ],
)
def test_what_cannot_be_expanded_is_named(network, count, message):
    with pytest.raises(UserError, match=message):
        expand(network, {}, count)


def test_a_fingerprint_tells_values_dtypes_names_and_places_apart_but_not_shardings():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)
    tree = {"a": x, "b": jnp.zeros(3)}
    others = [
        {"a": x.at[3, 1].add(1e-6), "b": jnp.zeros(3)},
        {"a": x[::-1], "b": jnp.zeros(3)},
        {"a": x, "c": jnp.zeros(3)},
        {"a": x.astype(jnp.bfloat16), "b": jnp.zeros(3)},
        {"a": x.T.reshape(8, 4), "b": jnp.zeros(3)},
    ]
    found = {fingerprint(t) for t in [tree, *others]}
    assert len(found) == 6
    mesh = jax.make_mesh((8,), ("x",))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert fingerprint({"a": sharded, "b": jnp.zeros(3)}) == fingerprint(tree)


def test_another_network_is_named_with_what_differs():
    with pytest.raises(UserError, match=r"num_layers is 4 there, 6 here"):
        require_same_model(dataclasses.replace(SMALL, num_layers=6), SMALL, "base")
    require_same_model(dataclasses.replace(SMALL, context_length=8), SMALL, "base")
