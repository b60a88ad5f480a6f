"""Rules: every matrix of every family is split, what is small is not, and other trees of the same paths follow."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from slmjax.models.families.registry import FAMILIES, model_config
from slmjax.models.transformer import Transformer
from slmjax.sharding.mesh import WEIGHTS, MeshConfig, make_mesh
from slmjax.sharding.rules import path_string, spec_for, tree_shardings


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
