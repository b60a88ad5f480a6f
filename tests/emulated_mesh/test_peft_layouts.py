"""Fine-tuning on eight emulated devices: each method has the loss and the gradients of one device."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from slmjax.models.attention.xla import xla_attention
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import make_method
from slmjax.sharding.activations import make_constrain, sharded_attention
from slmjax.sharding.mesh import MeshConfig, batch_spec, make_mesh
from slmjax.sharding.rules import tree_shardings
from tests.tiny import largest, make_batch, moved, noise, param_shapes

B, T, V = 4, 16, 96
CONFIG = ModelConfig(
    vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64, qkv_bias=True, head_dim=8
)
METHODS = {
    "lora": {"method": "lora", "lora": {"r": 4, "targets": ("all-linear", "embedder")}},
    "dora on nf4": {"method": "lora", "lora": {"r": 4, "dora": True}, "quantize": "nf4"},
    "houlsby": {"method": "adapter", "adapter": {"kind": "houlsby", "reduction_factor": 4}},
    "parallel on int8": {"method": "adapter", "adapter": {"kind": "parallel"}, "quantize": "int8"},
    "prefix": {"method": "prefix", "prefix": {"num_virtual_tokens": 3}},
    "prompt": {"method": "prompt", "prompt": {"num_virtual_tokens": 3}, "train": ("final_norm/scale",)},
    "p-tuning": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 3, "encoder": "lstm"}},
    "ia3": {"method": "ia3"},
    "freeze": {"method": "freeze", "freeze": {"last_layers": 1}},
}


@pytest.fixture(scope="module")
def base():
    return noise(param_shapes(CONFIG), 0.3)


def value_and_grad(peft, trained, frozen, mesh=None):
    execution, shardings, batch = Execution(remat="full"), None, make_batch(V, B, T, documents=2)
    if mesh is not None:
        execution = Execution(
            remat="full", attention=sharded_attention(xla_attention, mesh), constrain=make_constrain(mesh)
        )
        shardings = tree_shardings(trained, mesh)
        trained, frozen = (jax.device_put(tree, tree_shardings(tree, mesh)) for tree in (trained, frozen))
        batch = jax.device_put(batch, NamedSharding(mesh, batch_spec()))
    model = Transformer(CONFIG, execution)
    objective = next_token(model, make_method(PeftConfig(**peft), model), mesh=mesh)
    step = jax.jit(
        jax.value_and_grad(lambda *args: objective(*args).sum),
        out_shardings=None if mesh is None else (None, shardings),
    )
    loss, grads = step(trained, frozen, batch, None)
    return loss, grads


QUICK = {"lora", "houlsby", "prefix", "ia3"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in METHODS]
)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(name, base):
    method = make_method(PeftConfig(**METHODS[name]), Transformer(CONFIG))
    trained, frozen = jax.jit(method.split)(base, jax.random.key(0))
    trained = moved(trained, seed=2)  # off the start, where many gradients are zero
    loss, grads = value_and_grad(METHODS[name], trained, frozen)
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    sharded_loss, sharded_grads = value_and_grad(METHODS[name], trained, frozen, mesh)
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(sharded_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * largest(y) + 1e-6, err_msg=str(path))


def test_what_is_added_lies_along_what_it_is_added_to(base):
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    method = make_method(PeftConfig(method="lora", lora={"r": 4, "dora": True}, quantize="int8"), Transformer(CONFIG))
    trees = jax.eval_shape(method.split, base, jax.random.key(0))
    trained, frozen = (
        jax.tree.map(lambda leaf, s: s.shard_shape(leaf.shape), tree, tree_shardings(tree, mesh)) for tree in trees
    )
    attention = trained["peft"]["segment_0"]["block_0"]["attention"]
    assert attention["q_proj"] == {"lora_a": (2, 32 // 4, 4), "lora_b": (2, 4, 32 // 2), "dora_magnitude": (2, 32 // 2)}
    assert attention["o_proj"]["lora_a"] == (2, 32 // 2, 4) and attention["o_proj"]["lora_b"] == (2, 4, 32 // 4)
    weights = frozen["params"]["segment_0"]["block_0"]["feedforward"]
    assert weights["up_proj"]["kernel_int8"] == (2, 32 // 4, 64 // 2)
    assert weights["down_proj"]["kernel_int8"] == (2, 64 // 2, 32 // 4)
