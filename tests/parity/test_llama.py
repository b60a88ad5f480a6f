"""Training parity: loss and every gradient of a small Llama are those of transformers' LlamaForCausalLM, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = ModelConfig(
    vocab_size=97, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=56, tie_embeddings=False
)
NAMES = {
    "attention_norm/scale": "input_layernorm",
    "ffn_norm/scale": "post_attention_layernorm",
    **{f"attention/{x}_proj/kernel": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"feedforward/{x}_proj/kernel": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def to_ours(tensors: dict) -> dict:
    """transformers' named tensors [out, in] as our flat tree, layers stacked, kernels [in, out]."""
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    flat = {
        "embedder/embedding": arrays["model.embed_tokens.weight"],
        "final_norm/scale": arrays["model.norm.weight"],
        "lm_head/kernel": arrays["lm_head.weight"].T,
    }
    for ours, theirs in NAMES.items():
        layers = [arrays[f"model.layers.{i}.{theirs}.weight"].T for i in range(CONFIG.num_layers)]
        flat[f"segment_0/block_0/{ours}"] = np.stack(layers)
    return flat


def nested(flat: dict) -> dict:
    tree: dict = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = jnp.asarray(array)
    return tree


def test_loss_and_gradients():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=56,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((1.0 if "norm" in name else 0.0) + 0.2 * torch.randn_like(parameter))
    tokens = np.random.default_rng(1).integers(0, 97, (2, 17))
    their_loss = model(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
    their_loss.backward()
    theirs = dict(model.named_parameters())
    expected = nested(to_ours({name: p.grad for name, p in theirs.items()}))

    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(16), (2, 1)),
        "segments": np.ones((2, 16), np.int32),
        "loss_weights": np.ones((2, 16), np.float32),
    }

    def mean_loss(params):
        loss = next_token(Transformer(CONFIG))({"params": params}, {}, batch, None)
        return loss.sum / loss.weight

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(nested(to_ours(theirs)))
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        other = expected
        for key in path:
            other = other[key.key]
        np.testing.assert_allclose(
            gradient, other, atol=1e-5 * np.abs(other).max() + 1e-7, rtol=1e-3, err_msg=str(path)
        )
