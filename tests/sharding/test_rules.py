"""Rules: every matrix of every family is split, what is small is not, and other trees of the same paths follow."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from slmjax.models.families.registry import FAMILIES, model_config
from slmjax.models.parameters import path_string
from slmjax.models.transformer import Transformer
from slmjax.sharding.config import WEIGHTS, MeshConfig
from slmjax.sharding.mesh import axis_size, divides, make_mesh
from slmjax.sharding.rules import fit_spec, rule_for, spec_for, tree_shardings


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))


def shapes_of(name: str):
    init = Transformer(model_config(name)).init
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]


@pytest.mark.parametrize("name", [next(iter(sizes)) for _, sizes in FAMILIES.values()])
def test_nothing_large_is_held_whole(name, mesh):
    """At full size, each device of eight holds about an eighth; odd vocabularies and heads are split on one axis."""
    shapes = shapes_of(name)
    shardings = tree_shardings(shapes, mesh)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
    ):
        held = sharding.shard_shape(leaf.shape)
        if path_string(path).endswith(("kernel", "embedding")):
            assert leaf.size / math.prod(held) >= 4, (path_string(path), leaf.shape, sharding.spec)
            assert held[0] == leaf.shape[0] or "segment" not in path_string(path)  # layers are never split


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("embedder/embedding", (64, 32), P("tensor", WEIGHTS)),
        ("embedder/embedding", (63, 32), P(None, WEIGHTS)),
        ("lm_head/kernel", (32, 64), P(WEIGHTS, "tensor")),
        ("lm_head/bias", (64,), P("tensor")),
        ("segment_0/block_0/attention/q_proj/kernel", (3, 32, 16), P(None, WEIGHTS, "tensor")),
        ("segment_1/block_2/attention/o_proj/kernel", (3, 16, 32), P(None, "tensor", WEIGHTS)),
        ("segment_0/block_0/attention/v_proj/bias", (3, 16), P(None, "tensor")),
        ("segment_0/block_0/attention/o_proj/bias", (3, 16), P()),
        ("segment_0/block_0/feedforward/gate_proj/kernel", (3, 30, 16), P(None, None, "tensor")),
        ("segment_0/block_0/feedforward/down_proj/kernel", (3, 16, 32), P(None, "tensor", WEIGHTS)),
        ("position_embedder/embedding", (64, 32), P("tensor", WEIGHTS)),
        ("embed_in_proj/kernel", (16, 32), P(None, WEIGHTS)),
        ("final_norm/scale", (32,), P()),
        ("segment_0/block_0/attention/q_norm/scale", (3, 16), P()),
        ("opt_state/0/mu/embedder/embedding", (64, 32), P("tensor", WEIGHTS)),
        ("opt_state/0/v_row/embedder/embedding", (64,), P()),  # a factored moment
    ],
)
def test_spec_of_a_path(path, shape, spec, mesh):
    assert spec_for(path, shape, mesh) == spec


def test_optimizer_moments_lie_where_their_parameters_do(mesh):
    params = shapes_of("pythia-14m")
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    shardings = tree_shardings(state, mesh)
    expected = tree_shardings(params, mesh)
    assert shardings[0].mu == expected and shardings[0].nu == expected
    assert shardings[0].count.spec == P()


def test_one_layers_spec_is_the_stacks_without_its_first_axis(mesh):
    for name in ("q_proj/kernel", "down_proj/kernel", "up_proj/bias", "down_proj/bias", "q_proj/lora_b"):
        shape = (8, 12)[: 1 if name.endswith("bias") else 2]
        one = fit_spec(rule_for(name), shape, mesh)
        stacked = spec_for(f"segment_0/block_0/feedforward/{name}", (3, *shape), mesh)
        assert (None, *one) == (*stacked, *(None,) * (len(one) + 1 - len(stacked)))
    assert rule_for("final_norm/scale") == P()
    assert fit_spec(P("tensor", WEIGHTS), (7, 4), mesh) == P(None, WEIGHTS)


def test_axes_cut_a_dimension_into_the_product_of_their_sizes():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=1, tensor=4))
    assert [axis_size(mesh, axes) for axes in (None, "data", "tensor", ("fsdp", "tensor"), ())] == [1, 1, 4, 8, 1]
    assert divides(mesh, ("fsdp", "tensor"), 16) and not divides(mesh, ("fsdp", "tensor"), 12)
    assert divides(mesh, None, 7)
