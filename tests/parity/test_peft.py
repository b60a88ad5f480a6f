"""Each adapter that peft knows, its weights copied over by hand: the same logits on a tiny Llama, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.parameters import flatten, unflatten
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import make_method
from tests.tiny import initialized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

L, V, N = 2, 97, 5
CONFIG = ModelConfig(vocab_size=V, num_layers=L, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=56)
LINEAR = {f"attention/{x}_proj": f"self_attn.{x}_proj" for x in "qkvo"}
LINEAR |= {f"feedforward/{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
TOKENS = np.random.default_rng(0).integers(0, V, (2, 11)).astype(np.int32)


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        num_hidden_layers=L,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=56,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((1.0 if "norm" in name else 0.0) + 0.2 * torch.randn_like(parameter))
    return model


def stacked(tensors, name, transform=lambda x: x.T):
    return jnp.asarray(np.stack([transform(tensors[name.format(i)].detach().numpy()) for i in range(L)]))


def base_of(model):
    tensors = dict(model.named_parameters())
    block = "segment_0/block_0"
    flat = {
        "embedder/embedding": jnp.asarray(tensors["model.embed_tokens.weight"].detach().numpy()),
        "final_norm/scale": jnp.asarray(tensors["model.norm.weight"].detach().numpy()),
        f"{block}/attention_norm/scale": stacked(tensors, "model.layers.{}.input_layernorm.weight"),
        f"{block}/ffn_norm/scale": stacked(tensors, "model.layers.{}.post_attention_layernorm.weight"),
    }
    for ours, theirs in LINEAR.items():
        flat[f"{block}/{ours}/kernel"] = stacked(tensors, "model.layers.{}." + theirs + ".weight")
    return unflatten(flat)


def shaken(model):
    """What peft trains, moved off its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return peft.get_peft_model_state_dict(model)


@jax.jit
def plain_logits(base):
    return Transformer(CONFIG).apply({"params": base}, TOKENS)


def compare(model, theirs, ours, base):
    method = make_method(PeftConfig(**ours), Transformer(CONFIG))
    trained, frozen = jax.jit(method.split)(base, jax.random.key(0))
    same = jax.tree.map(lambda x, y: x.shape == y.shape, trained["peft"], theirs)
    assert all(jax.tree.leaves(same))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    run = jax.jit(lambda t, f: forward(Network(Transformer(CONFIG)), method.variables(t, f), jnp.asarray(TOKENS)))
    logits = np.asarray(run({"peft": theirs}, frozen))
    expected = expected[:, -TOKENS.shape[1] :]  # prompt tuning gives logits for the prompt too
    plain = np.asarray(plain_logits(base))
    assert np.abs(expected - plain).max() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "patterns"])
def test_lora(llama, kind):
    options = {"rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "lora": {}}
    options["patterns"] = {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": [1]}
    ours = {"rslora": {"rslora": True}, "dora": {"dora": True}, "lora": {}}
    ours["patterns"] = {"rank_pattern": (("up_proj", 2),), "alpha_pattern": (("q_proj", 3.0),), "layers": (1,)}
    base = base_of(llama)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear", **options[kind]
    ) if kind != "patterns" else peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], **options[kind]
    )  # fmt: skip
    model = peft.get_peft_model(llama, config)
    state = shaken(model)
    lora = {"r": 4, "alpha": 6.0} | ours[kind]
    names, layers = LINEAR, range(L)
    if kind == "patterns":
        lora["targets"], layers = ("q_proj", "up_proj"), (1,)
        names = {path: name for path, name in LINEAR.items() if path.endswith(("q_proj", "up_proj"))}
    trained = {}
    for path, name in names.items():
        of = lambda leaf, name=name: np.stack(  # noqa: E731
            [state[f"base_model.model.model.layers.{i}.{name}.{leaf}"].numpy().T for i in layers]
        )
        trained[f"segment_0/block_0/{path}/lora_a"] = of("lora_A.weight")
        trained[f"segment_0/block_0/{path}/lora_b"] = of("lora_B.weight")
        if kind == "dora":
            trained[f"segment_0/block_0/{path}/dora_magnitude"] = of("lora_magnitude_vector")
    compare(model, jax.tree.map(jnp.asarray, unflatten(trained)), {"method": "lora", "lora": lora}, base)


def test_ia3(llama):
    base = base_of(llama)
    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    model = peft.get_peft_model(llama, config)
    state = shaken(model)
    trained = {}
    for path, name, leaf in (
        ("attention/k_proj", "self_attn.k_proj", "ia3_output"),
        ("attention/v_proj", "self_attn.v_proj", "ia3_output"),
        ("feedforward/down_proj", "mlp.down_proj", "ia3_input"),
    ):
        vectors = [state[f"base_model.model.model.layers.{i}.{name}.ia3_l"].numpy().ravel() for i in range(L)]
        trained[f"segment_0/block_0/{path}/{leaf}"] = jnp.asarray(np.stack(vectors))
    compare(model, unflatten(trained), {"method": "ia3"}, base)


@pytest.mark.parametrize("projection", [False, True])
def test_prefix_tuning(llama, projection):
    base = base_of(llama)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, prefix_projection=projection)
    model = peft.get_peft_model(llama, config).eval()
    # [n, L * 2 * G * K]; the MLP is folded away when it is saved
    vectors = shaken(model)["prompt_embeddings"].numpy().reshape(N, L, 2, 2, 8).transpose(1, 2, 0, 3, 4)
    prefix = {"prefix_key": jnp.asarray(vectors[:, 0]), "prefix_value": jnp.asarray(vectors[:, 1])}
    trained = {"segment_0": {"block_0": {"attention": prefix}}}
    compare(model, trained, {"method": "prefix", "prefix": {"num_virtual_tokens": N}}, base)


@pytest.mark.parametrize("kind", ["prompt", "MLP", "LSTM"])
def test_prompt_tuning(llama, kind):
    base = base_of(llama)
    if kind == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
    else:
        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_reparameterization_type=kind, encoder_hidden_size=16
        )
    model = peft.get_peft_model(llama, config).eval()
    trained = {"prompt": jnp.asarray(shaken(model)["prompt_embeddings"].numpy())}
    compare(model, trained, {"method": "prompt", "prompt": {"num_virtual_tokens": N}}, base)


def test_the_names_of_the_small_tree_are_those_of_the_base():
    """An importer finds each array by the base's path."""
    method = make_method(PeftConfig(method="lora"), Transformer(CONFIG))
    base = initialized(CONFIG)
    modules = {path.rpartition("/")[0] for path in flatten(method.split(base, jax.random.key(0))[0]["peft"])}
    assert modules == {f"segment_0/block_0/{path}" for path in LINEAR}
