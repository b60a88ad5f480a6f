"""Logits of miniatures of the families without RMSNorm, against transformers, in float32.

The same random weights go into both; transformers' names and layouts are undone here, in the test.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.families import model_config
from slmjax.models.transformer import Transformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, D, H, G, K, F, L, CONTEXT = 67, 32, 4, 2, 8, 48, 2, 64
T = 24

# name -> (transformers class, its arguments beyond the common ones, changes to our miniature)
CASES = {
    "gpt2": ("GPT2", {"n_embd": D, "n_layer": L, "n_head": H, "n_inner": F, "n_positions": CONTEXT}, {}),
    "opt-125m": ("OPT", {"ffn_dim": F, "word_embed_proj_dim": D}, {}),
    "opt-350m": ("OPT", {"ffn_dim": F, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, {}),
    "bloom-560m": ("Bloom", {"n_layer": L, "n_head": H}, {"ffn_dim": 4 * D}),
    "falcon-rw-1b": (
        "Falcon",
        {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True, "ffn_hidden_size": F},
        {},
    ),
    "falcon-7b": ("Falcon", {"multi_query": True, "parallel_attn": True, "ffn_hidden_size": F}, {"num_kv_heads": 1}),
    "pythia-14m": ("GPTNeoX", {"rope_parameters": {"partial_rotary_factor": 0.25}}, {"rope_fraction": 0.25}),
    "phi-1": ("Phi", {"rope_parameters": {"partial_rotary_factor": 0.5}}, {}),
    "olmo-1b": ("Olmo", {}, {}),
    "stablelm-3b": ("StableLm", {"rope_parameters": {"partial_rotary_factor": 0.25}}, {"rope_fraction": 0.25}),
    "stablelm-2-1.6b": (
        "StableLm",
        {"rope_parameters": {"partial_rotary_factor": 0.25}, "use_qkv_bias": True},
        {"rope_fraction": 0.25},
    ),
    "minitron-4b": ("Nemotron", {"rope_parameters": {"partial_rotary_factor": 0.5}}, {}),
}
# The others are slow: all together they take half a minute.
QUICK = {"gpt2", "falcon-7b", "stablelm-3b"}
NO_GROUPS = {"gpt2", "opt-125m", "opt-350m", "bloom-560m", "falcon-rw-1b", "pythia-14m", "phi-1"}
NORM_EPS = {"Nemotron": "norm_eps", "GPT2": "layer_norm_epsilon", "Bloom": "layer_norm_epsilon"}
NORM_EPS |= {"Falcon": "layer_norm_epsilon", "GPTNeoX": "layer_norm_eps", "Phi": "layer_norm_eps"}
NORM_EPS |= {"StableLm": "layer_norm_eps"}

# transformers' names, after their prefixes, to ours.
RENAMES = [
    (r"^(model|transformer|gpt_neox)\.(decoder\.)?", ""),
    (r"^(embed_tokens|wte|word_embeddings|embed_in)\.weight", "embedder.embedding"),
    (r"^(wpe|embed_positions)\.weight", "position_embedder.embedding"),
    (r"^word_embeddings_layernorm\.", "embed_norm."),
    (r"^project_(in|out)\.", r"embed_\1_proj."),
    (r"^embed_out\.", "lm_head."),
    (r"^(norm|ln_f|final_layer_norm|final_layernorm)\.", "final_norm."),
    (r"^h\.", "layers."),
    (r"\.(self_attn|self_attention|attn|attention)\.", ".attention."),
    (r"attention\.(c_attn|query_key_value|qkv_proj)\.", "attention.qkv_proj."),
    (r"attention\.(c_proj|out_proj|dense)\.", "attention.o_proj."),
    (r"(mlp\.|\.)(c_fc|fc1|dense_h_to_4h|up_proj)\.", ".feedforward.up_proj."),
    (r"(mlp\.|\.)(c_proj|fc2|dense_4h_to_h|down_proj)\.", ".feedforward.down_proj."),
    (r"mlp\.(gate_proj|gate_up_proj)\.", r"feedforward.\1."),
    (r"\.\.", "."),
    (r"\.(input_layernorm|ln_1|self_attn_layer_norm)\.", ".attention_norm."),
    (r"\.(ln_2|final_layer_norm|pre_feedforward_layernorm)\.", ".ffn_norm."),
    (r"\.post_feedforward_layernorm\.", ".post_ffn_norm."),
]


def ours(name: str, config: ModelConfig) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    after = "post_attention_norm" if config.norm_placement in ("output", "sandwich") else "ffn_norm"
    name = name.replace("post_attention_layernorm", after)
    if "norm" in name:
        return name.replace(".weight", ".scale")
    return name.replace(".weight", ".kernel")


def split_fused(name: str, value: np.ndarray, family: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """Fused projections, first axis the outputs, to their parts."""
    if "gate_up_proj" in name:
        gate, up = np.split(value, 2)
        return {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
    if "qkv_proj" not in name:
        return {name: value}
    h, g, k = config.num_heads, config.num_kv_heads, config.head_dim
    if family in ("Bloom", "GPTNeoX") or (family == "Falcon" and g == h):  # [H, 3, K]
        parts = value.reshape(h, 3, k, *value.shape[1:]).swapaxes(0, 1)
        parts = parts.reshape(3, h * k, *value.shape[1:])
    else:
        parts = np.split(value, [h * k, (h + g) * k])
    return {name.replace("qkv", letter): part for letter, part in zip("qkv", parts, strict=True)}


def our_params(model, family: str, config: ModelConfig) -> dict:
    """The nested dict of our network with a transformers model's weights."""
    flat = {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if family == "GPT2" and value.ndim == 2 and re.search(r"c_(attn|proj|fc)", name):
            value = value.T
        for part, array in split_fused(ours(name, config), value, family, config).items():
            flat[part] = array.T if part.endswith(".kernel") else array
    if config.tie_embeddings:
        flat.pop("lm_head.kernel", None)

    params: dict = {}

    def put(path, array):
        node = params
        *parents, leaf = path
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = jnp.asarray(array)

    for name, array in flat.items():
        if not name.startswith("layers."):
            put(name.split("."), array)
    first = 0
    for s, segment in enumerate(config.segments):
        size = len(segment.period)
        for j in range(size):
            prefix = f"layers.{first + j}."
            for name in [n.removeprefix(prefix) for n in flat if n.startswith(prefix)]:
                stack = [flat[f"layers.{first + r * size + j}.{name}"] for r in range(segment.repeats)]
                put([f"segment_{s}", f"block_{j}", *name.split(".")], np.stack(stack))
        first += size * segment.repeats
    return params


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES])
def test_logits_are_those_of_transformers(case):
    name = case.split(",")[0]
    family, arguments, changes = CASES[case]
    published = model_config(name)
    sizes = {"vocab_size": VOCAB, "num_layers": L, "embed_dim": D, "num_heads": H, "head_dim": K, "ffn_dim": F}
    sizes |= {"num_kv_heads": H if name in NO_GROUPS else G, "context_length": CONTEXT}
    if published.embedding_projection_dim:
        sizes["embedding_projection_dim"] = 16
    config = dataclasses.replace(published, **sizes | changes)

    common = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H}
    common |= {"max_position_embeddings": CONTEXT, "tie_word_embeddings": config.tie_embeddings}
    # The eager path of Falcon's ALiBi adds the bias twice (transformers 5.23).
    common |= {"attn_implementation": "sdpa" if name == "falcon-rw-1b" else "eager"}
    common |= {NORM_EPS.get(family, "rms_norm_eps"): config.norm_eps}
    if family not in ("GPT2", "OPT", "Bloom", "Falcon"):
        common |= {"intermediate_size": F, "head_dim": K}
    if name not in NO_GROUPS and family != "Falcon":
        common["num_key_value_heads"] = G
    arguments = dict(arguments)
    if family not in ("GPT2", "OPT", "Bloom"):
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        arguments["rope_parameters"] = rope | arguments.get("rope_parameters", {})
    config_class = f"{family}Config"
    model_class = {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    torch.manual_seed(0)
    theirs = getattr(transformers, config_class)(**common | arguments)
    model = getattr(transformers, model_class)(theirs).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # neither biases nor gains stay at their neutral values
            center = 1.0 if "norm" in key and "weight" in key and not config.norm_unit_offset else 0.0
            center = 1.0 if re.search(r"ln_[12f]\.weight", key) else center
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))

    params = our_params(model, family, config)
    expected_shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))[
        "params"
    ]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_shapes)
    tokens = np.random.default_rng(0).integers(1, VOCAB, (2, T))
    logits = jax.jit(Transformer(config).apply)({"params": params}, tokens)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-3)
