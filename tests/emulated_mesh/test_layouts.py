"""Eight emulated devices: every layout of the mesh gives the loss and the gradients of one device, in float32."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from slmjax.models.attention.contract import Mask, Scores
from slmjax.models.attention.splash import SplashAttention
from slmjax.models.attention.xla import xla_attention
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.positions import alibi_slopes
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token
from slmjax.sharding.activations import make_constrain, sharded_attention
from slmjax.sharding.mesh import MeshConfig, batch_spec, make_mesh
from slmjax.sharding.rules import tree_shardings
from tests import tiny
from tests.tiny import sum_and_loss

B, T, V = 8, 16, 96
# Windows, grouped heads, an untied head with bias and a soft cap: what a layout could get wrong.
UNTIED = ModelConfig(
    vocab_size=V,
    num_layers=4,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=64,
    layer_pattern=("local", "global"),
    window=5,
    qk_norm="head",
    qkv_bias=True,
    logit_softcap=3.0,
    tie_embeddings=False,
    head_bias=True,
)
# Sizes that no axis divides evenly (37 ids, 1 key/value head, 20 wide), ALiBi, a tied head.
ODD = ModelConfig(
    vocab_size=37, num_layers=2, embed_dim=20, head_dim=8, num_heads=4, num_kv_heads=1, ffn_dim=24, position="alibi"
)
CONFIGS = {"untied": UNTIED, "odd": ODD}
LAYOUTS = {
    "fsdp 8": MeshConfig(),
    "data 8": MeshConfig(data=8),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, tensor=2),
    "fsdp 2, tensor 4": MeshConfig(tensor=4),
    "sequence 8": MeshConfig(sequence=8),
    "fsdp 2, sequence 2, tensor 2": MeshConfig(sequence=2, tensor=2),
}


def make_batch(config: ModelConfig, rows: int = B, length: int = T) -> dict[str, np.ndarray]:
    return tiny.make_batch(config.vocab_size, rows, length)


def make_params(config: ModelConfig) -> dict:
    return tiny.noise(tiny.param_shapes(config))


def value_and_grad(config, batch, mesh=None):
    """Loss sums and gradients, on one device or on a mesh, with the smallest chunks of logits."""
    program, arguments = compile_value_and_grad(config, batch, mesh)
    return program(*arguments)


def compile_value_and_grad(config, batch, mesh=None):
    """The compiled program of `value_and_grad`, and its arguments where the rules put them."""
    params, execution, shardings = {"params": make_params(config)}, Execution(remat="full"), None
    if mesh is not None:
        attention = sharded_attention(xla_attention, mesh)
        execution = Execution(remat="full", attention=attention, constrain=make_constrain(mesh))
        shardings = tree_shardings(params, mesh)
        params = jax.device_put(params, shardings)
        spec = batch_spec() if len(batch["inputs"]) % 8 == 0 else jax.sharding.PartitionSpec()
        batch = jax.device_put(batch, NamedSharding(mesh, spec))
    objective = next_token(Transformer(config, execution), z_loss=1e-2, mesh=mesh, logits_bytes=1)
    step = jax.jit(
        jax.value_and_grad(sum_and_loss(objective), has_aux=True),
        out_shardings=None if mesh is None else (None, shardings),
    )
    arguments = params, {}, batch, None
    return step.lower(*arguments).compile(), arguments


def communicated(program) -> list[tuple[int, ...]]:
    """The shapes of the float32 results of all collectives, as one device sees them."""
    collectives = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    results = re.findall(rf" = (.+?) (?:{collectives})(?:-start)?\(", program.as_text())  # an array or a tuple
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(results))
    return [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]


@pytest.fixture(scope="module")
def one_device():
    return {name: value_and_grad(config, make_batch(config)) for name, config in CONFIGS.items()}


def assert_equal(result, expected):
    (sums, gradients), (expected_sums, expected_gradients) = result, expected
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), sums, expected_sums)
    for (path, gradient), other in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        scale = tiny.largest(other)
        assert scale > 1e-4, path
        np.testing.assert_allclose(gradient, other, atol=1e-5 * scale, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("config", "layout"),
    [("untied", layout) for layout in LAYOUTS]
    + [("odd", "data 2, fsdp 2, tensor 2"), ("odd", "fsdp 2, sequence 2, tensor 2")],
)
def test_every_layout_gives_the_loss_and_gradients_of_one_device(one_device, config, layout):
    mesh = make_mesh(LAYOUTS[layout])
    program, arguments = compile_value_and_grad(CONFIGS[config], make_batch(CONFIGS[config]), mesh)
    result = program(*arguments)
    assert_equal(result, one_device[config])
    for gradient, sharding in zip(
        jax.tree.leaves(result[1]), jax.tree.leaves(tree_shardings(result[1], mesh)), strict=True
    ):
        assert gradient.sharding.is_equivalent_to(sharding, gradient.ndim)
    # No device ever receives another's activations, but for the keys and values (4 or 5 dimensions) over `sequence`.
    rows, positions = B // (mesh.shape["data"] * mesh.shape["fsdp"]), T // mesh.shape["sequence"]
    shapes = communicated(program)
    assert {len(shape) for shape in shapes} >= {2}
    assert all(shape[0] == rows for shape in shapes if len(shape) > 2), shapes
    assert all(shape[:2] == (rows, positions) for shape in shapes if len(shape) == 3), shapes


def test_a_batch_that_the_devices_do_not_divide_is_computed_whole():
    """Three rows of 15 tokens, as a last validation batch may be."""
    batch = make_batch(UNTIED, rows=3, length=15)
    assert_equal(
        value_and_grad(UNTIED, batch, make_mesh(MeshConfig(sequence=2, tensor=2))), value_and_grad(UNTIED, batch)
    )


def test_parameters_are_made_where_the_rules_put_them():
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    init = lambda key: Transformer(UNTIED).init(key, jnp.zeros((1, 4), jnp.int32))["params"]  # noqa: E731
    shardings = tree_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    params = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    block = params["segment_0"]["block_0"]
    local = lambda x: x.addressable_shards[0].data.shape  # noqa: E731
    assert local(params["embedder"]["embedding"]) == (V // 2, 32 // 4)
    assert local(params["lm_head"]["kernel"]) == (32 // 4, V // 2)
    assert local(block["attention"]["q_proj"]["kernel"]) == (2, 32 // 4, 32 // 2)
    assert local(block["attention"]["q_proj"]["bias"]) == (2, 32 // 2)
    assert local(block["attention"]["o_proj"]["kernel"]) == (2, 32 // 2, 32 // 4)
    assert local(block["feedforward"]["down_proj"]["kernel"]) == (2, 64 // 2, 32 // 4)
    assert local(block["attention_norm"]["scale"]) == (2, 32)
    held = sum(np.prod(local(x)) for x in jax.tree.leaves(params))
    whole = sum(x.size for x in jax.tree.leaves(params))
    assert held < 1.1 * whole / 8
    # Where they are made does not change what they are.
    alone = jax.jit(init)(jax.random.key(0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), params, alone)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("layout", ["sequence 8", "fsdp 2, sequence 2, tensor 2", "fsdp 2, tensor 4"])
def test_attention_shard_by_shard_is_attention(layout, segments):
    mesh = make_mesh(LAYOUTS[layout])
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((4, 32, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    ids = make_batch(UNTIED, 4, 32)["segments"] if segments else None
    mask, scores = Mask(ids, ids, window=7), Scores(0.3, 2.0, jnp.asarray(alibi_slopes(4)))
    sharded, whole = jax.jit(sharded_attention(xla_attention, mesh)), jax.jit(xla_attention)
    np.testing.assert_allclose(sharded(q, k, v, mask, scores), whole(q, k, v, mask, scores), atol=1e-5)

    at_20 = None if ids is None else ids[:, 20:21]  # a decoding step, at an offset
    mask = Mask(at_20, ids, window=7, offset=jnp.asarray(20))
    expected = whole(q[:, :1], k, v, mask, scores)
    np.testing.assert_allclose(sharded(q[:, :1], k, v, mask, scores), expected, atol=1e-5)


@pytest.mark.parametrize("window", [None, 150])
def test_splash_over_the_sequence_axis_is_attention(window):
    """The kernel's block mask is cut along the queries; in Pallas's interpreter."""
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    rng = np.random.default_rng(3)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 512, heads, 64)), jnp.float32) for heads in (4, 2, 2))
    ids = jnp.asarray(make_batch(UNTIED, 2, 512)["segments"])
    mask, scores = Mask(ids, ids, window), Scores(0.125)
    probe = jnp.asarray(rng.standard_normal(q.shape), jnp.float32)

    def run(attention):
        def loss(q, k, v):
            out = attention(q, k, v, mask, scores)
            return jnp.sum(out * probe), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    (gradients, out), (expected_gradients, expected) = (
        run(sharded_attention(SplashAttention(interpret=True), mesh)),
        run(xla_attention),
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-4)
