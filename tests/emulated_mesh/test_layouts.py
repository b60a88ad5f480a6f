"""Eight emulated devices: however the mesh is laid out, the loss and its gradients are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from slmjax.errors import UserError
from slmjax.models.attention_kernels import xla_attention
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token
from slmjax.sharding.activations import check_mesh_fits, make_constrain, sharded_attention
from slmjax.sharding.mesh import MeshConfig, batch_spec, make_mesh
from slmjax.sharding.rules import spec_for, tree_shardings

CONFIG = ModelConfig(
    vocab_size=96,
    num_layers=4,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=64,
    layer_pattern=("local", "global"),
    window=5,
    qk_norm="head",
    qkv_bias=True,
    head_bias=True,
    tie_embeddings=False,
)
B, T = 8, 32


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    positions = np.zeros_like(segments)
    for row, ids in enumerate(segments):
        for i in range(1, T):
            positions[row, i] = positions[row, i - 1] + 1 if ids[i] == ids[i - 1] else 0
    return {
        "inputs": rng.integers(0, 96, (B, T)).astype(np.int32),
        "targets": rng.integers(0, 96, (B, T)).astype(np.int32),
        "positions": positions,
        "segments": segments,
        "loss_weights": rng.random((B, T)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def params(batch):
    tree = Transformer(CONFIG).init(jax.random.key(1), batch["inputs"])["params"]
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(3), x.shape), tree)


def differentiate(mesh, params, batch):
    run = Execution(remat="full")
    if mesh is not None:
        run = Execution(constrain=make_constrain(mesh), attention=sharded_attention(xla_attention, mesh), remat="full")
        params = jax.device_put(params, tree_shardings(params, mesh))
        batch = jax.device_put(batch, NamedSharding(mesh, batch_spec()))
    objective = next_token(Transformer(CONFIG, run), z_loss=1e-2, mesh=mesh, logits_bytes=1)
    (loss, _), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, batch, jax.random.key(0))
    return loss, gradients


@pytest.fixture(scope="module")
def reference(params, batch):
    return differentiate(None, params, batch)


@pytest.mark.parametrize(
    "layout",
    [
        {"data": 8, "fsdp": 1},
        {"fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 2, "tensor": 4},  # more shards than key/value heads
        {"fsdp": 2, "sequence": 2, "tensor": 2},
        {"fsdp": 1, "sequence": 8},
    ],
    ids=str,
)
def test_every_layout_gives_the_same_loss_and_gradients(layout, params, batch, reference):
    mesh = make_mesh(MeshConfig(**layout))
    loss, gradients = differentiate(mesh, params, batch)
    np.testing.assert_allclose(loss, reference[0], rtol=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(reference[1]))
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(reference[1]), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5 * scale)


def test_parameters_are_cut_by_their_paths():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    assert tuple(spec_for("segment_0/block_0/attention/q_proj/kernel", (4, 32, 64), mesh)) == (
        None,
        ("fsdp", "sequence"),
        "tensor",
    )
    assert tuple(spec_for("embedder/embedding", (97, 32), mesh)) == (None, ("fsdp", "sequence"))  # 97 does not divide
    assert tuple(spec_for("segment_0/block_0/attention_norm/scale", (4, 32), mesh)) == ()


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (MeshConfig(data=3, fsdp=1), "8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "at most one may be -1"),
        (MeshConfig(fsdp=-1, tensor=3), "mesh.tensor=3"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(mesh, said):
    with pytest.raises(UserError, match=said):
        make_mesh(mesh)


def test_heads_and_positions_must_divide():
    with pytest.raises(UserError, match=r"num_heads=4.*mesh.tensor=8"):
        check_mesh_fits(CONFIG, make_mesh(MeshConfig(fsdp=1, tensor=8)), T)
    with pytest.raises(UserError, match=r"sequence_length=30.*mesh.sequence=4"):
        check_mesh_fits(CONFIG, make_mesh(MeshConfig(fsdp=2, sequence=4)), 30)
