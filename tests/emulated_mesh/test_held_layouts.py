"""What holds a network to its base, and noise on embeddings, on eight emulated devices: the numbers of one device."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from slmjax.models.attention.xla import xla_attention
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.regularized import regularized
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import anchor, make_method
from slmjax.sharding.activations import make_constrain, sharded_attention
from slmjax.sharding.mesh import MeshConfig, batch_spec, make_mesh
from slmjax.sharding.rules import tree_shardings
from tests.tiny import moved, noise, param_shapes, sum_and_loss

B, T, V = 4, 16, 96
CONFIG = ModelConfig(vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64, head_dim=8)
METHODS = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora": {"r": 4, "targets": ("all-linear", "embedder")}, "train": ("final_norm/scale",)},
}


def make_batch():
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, V, (2, B, T)).astype(np.int32)
    segments = np.sort(rng.integers(1, 3, (B, T)), axis=1).astype(np.int32)
    batch = {"inputs": inputs, "targets": targets, "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1))}
    return (
        batch
        | {"segments": segments}
        | {n: rng.random((B, T)).astype(np.float32) for n in ("loss_weights", "kl_weights")}
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(name):
    base = noise(param_shapes(CONFIG), 0.2)
    key, results = jax.random.key(5), []
    for mesh in (None, make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))):
        execution, place, batch = Execution(remat="full"), lambda tree: tree, make_batch()
        if mesh is not None:
            attention = sharded_attention(xla_attention, mesh)
            execution = Execution(remat="full", attention=attention, constrain=make_constrain(mesh))
            place = lambda tree, mesh=mesh: jax.device_put(tree, tree_shardings(tree, mesh))  # noqa: E731
            batch = jax.device_put(batch, NamedSharding(mesh, batch_spec()))
        model = Transformer(CONFIG, execution)
        method = make_method(PeftConfig(**METHODS[name]), model)
        method = anchor(dataclasses.replace(method, options=dataclasses.replace(method.options, neftune=5.0)), ewc=True)
        trained, frozen = jax.jit(method.split)(base, jax.random.key(1))
        frozen["fisher"] = jax.tree.map(np.abs, moved(frozen["fisher"], 1.0, seed=3))
        trained, frozen = place(moved(trained, seed=2)), place(frozen)
        objective = regularized(model, method, l2_sp=0.3, ewc=0.3, kl=0.5, mesh=mesh, logits_bytes=4 * V * 12)
        step = jax.jit(jax.value_and_grad(sum_and_loss(objective), has_aux=True))
        results.append(jax.device_get(step(trained, frozen, batch, key)))
    ((value, loss), grads), ((sharded_value, sharded), sharded_grads) = results
    np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), sharded, loss)
    assert min(float(loss.metrics[term].sum) for term in ("l2_sp", "ewc", "kl")) > 0.1
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(sharded_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * float(np.abs(y).max()) + 1e-6, err_msg=str(path))
