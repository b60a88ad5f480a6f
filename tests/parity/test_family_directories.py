"""Directories of the LayerNorm families and of those that bring their own code, in and out, against their references.

Of each family a tiny random network with its quirks on, and no gain or bias at its neutral value. transformers builds
and runs it where it has the class; else a short numpy network, written from the papers and released configurations.
benchmarks/family_parity.py makes a table of each family's largest differences.
"""

import inspect
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import family_for
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.formats.weight_map import write_tensors
from slmjax.models.kv_cache import empty_cache
from slmjax.models.parameters import abstract_leaves
from slmjax.models.transformer import Transformer

V, D, H, K, F, L, CONTEXT = 67, 32, 4, 8, 48, 2, 64
T, CHUNK, PADDING = 24, 3, 7
COMMON = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H}
ROTARY = {**COMMON, "intermediate_size": F, "max_position_embeddings": CONTEXT}
GPT2 = {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": H, "n_positions": CONTEXT}
OPT = {**COMMON, "ffn_dim": F, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": D}
FALCON = {**COMMON, "max_position_embeddings": CONTEXT}
GALACTICA = {"activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False}
# 12 heads: their slopes are no powers of two, so that Falcon's rounding of ALiBi shows.
FALCON_RW = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True, "num_attention_heads": 12}
FALCON_RW |= {"hidden_size": 48}
NEW_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}
NEO = {"vocab_size": V, "hidden_size": D, "num_heads": H, "max_position_embeddings": CONTEXT, "window_size": 5}
TINY_STORIES = {**NEO, "num_layers": 4, "attention_types": [[["global", "local"], 2]]}
ODD_NEO = {**NEO, "num_layers": 3, "attention_types": [[["global", "local"], 1], [["local"], 1]]}
MPT = {"vocab_size": V, "d_model": 48, "n_layers": L, "n_heads": 6, "max_seq_len": CONTEXT}
CLIPPED = {"attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.2}}
GQA = {**ROTARY, "num_key_value_heads": 2}
COHERE_2 = {**GQA, "num_hidden_layers": 5, "sliding_window": 5, "logit_scale": 0.25}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}

# name -> (transformers' class, the arguments of its config)
CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2, as cerebras-gpt": ("GPT2", {**GPT2, "n_inner": F, "activation_function": "gelu"}),
    "gpt2, unscaled, untied": ("GPT2", {**GPT2, "scale_attn_weights": False, "tie_word_embeddings": False}),
    "opt": ("OPT", OPT),
    "opt, post-norm and projections": ("OPT", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "opt, galactica": ("OPT", {**OPT, **GALACTICA}),
    "bloom": ("Bloom", {"vocab_size": V, "hidden_size": D, "n_layer": L, "n_head": H}),
    "falcon, rw": ("Falcon", {**FALCON, **FALCON_RW}),
    "falcon, multi-query": ("Falcon", {**FALCON, "ffn_hidden_size": F}),
    "falcon, new": ("Falcon", {**FALCON, **NEW_FALCON}),
    "falcon, new with one norm": ("Falcon", {**FALCON, **NEW_FALCON, "num_ln_in_parallel_attn": 1}),
    "gpt_neox": ("GPTNeoX", {**ROTARY, "rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.25}}),
    "gpt_neox, sequential": ("GPTNeoX", {**ROTARY, "use_parallel_residual": False, "attention_bias": False}),
    "phi": ("Phi", {**ROTARY, "num_key_value_heads": 2, "rope_parameters": {"partial_rotary_factor": 0.5, **LINEAR}}),
    "stablelm": ("StableLm", {**ROTARY, "num_key_value_heads": 2, "use_qkv_bias": True}),
    "stablelm, parallel": ("StableLm", {**ROTARY, "num_key_value_heads": 4, "use_parallel_residual": True}),
    "olmo": ("Olmo", {**ROTARY, "num_key_value_heads": 2, "clip_qkv": 0.4, "tie_word_embeddings": True}),
    "nemotron": ("Nemotron", {**ROTARY, "num_key_value_heads": 2, "head_dim": 12, "attention_bias": True}),
    "gpt_neo": ("GPTNeo", TINY_STORIES),
    "gpt_neo, odd windows": ("GPTNeo", {**ODD_NEO, "intermediate_size": F, "tie_word_embeddings": False}),
    "gptj": ("GPTJ", {**GPT2, "rotary_dim": 4}),
    "gptj, tied": ("GPTJ", {**GPT2, "rotary_dim": 6, "n_inner": F, "tie_word_embeddings": True}),
    "gpt_bigcode": ("GPTBigCode", GPT2),
    "gpt_bigcode, unscaled": ("GPTBigCode", {**GPT2, "scale_attn_weights": False, "n_inner": F}),
    "starcoder2": ("Starcoder2", {**GQA, "sliding_window": 5}),
    "starcoder2, no biases": ("Starcoder2", {**GQA, "use_bias": False, "tie_word_embeddings": False}),
    "mpt": ("Mpt", {**MPT, **CLIPPED}),
    "mpt, untied": ("Mpt", {**MPT, "n_heads": 4, "tie_word_embeddings": False}),
    "cohere": ("Cohere", {**GQA, "use_qk_norm": True, "logit_scale": 0.3, "attention_bias": True}),
    "cohere, untied": ("Cohere", {**GQA, "logit_scale": 0.5, "tie_word_embeddings": False}),
    "cohere2": ("Cohere2", COHERE_2),
}
QUICK = {"gpt2", "opt, post-norm and projections", "falcon, rw", "falcon, new", "gpt_neox", "olmo"}
QUICK |= {"gpt_neo", "gptj", "cohere"}


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    gain = re.search(r"(norm\w*|ln_\w+)\.weight$", name) is not None
    return (float(gain) + 0.2 * rng.standard_normal(shape)).astype(np.float32)


def padded_inputs(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, positions, mask): the second row loses its first tokens to padding on the left."""
    mask = np.ones_like(tokens)
    mask[1, :PADDING] = 0
    return tokens * mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0) * mask, mask


# Each program is run a few times: most of the time goes into compiling it.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def cached_logits(config, params, tokens, positions, mask) -> np.ndarray:
    """Logits through the key/value cache, a few tokens at a time."""

    @quick_jit
    def step(cache, tokens, positions, mask):
        return Transformer(config).apply({"params": params}, tokens, positions, mask, cache, method="logits")

    cache, pieces = empty_cache(config, len(tokens), T, jnp.float32), []
    for start in range(0, T, CHUNK):
        part = slice(start, start + CHUNK)
        logits, cache = step(cache, tokens[:, part], positions[:, part], mask[:, part])
        pieces.append(logits)
    return np.concatenate(pieces, axis=1)


def largest_differences(directory, whole, padded) -> tuple:
    """(config, params, differences of whole sequences, of a left-padded batch through the cache) of a directory.

    whole: tokens [B, T] -> logits of the reference; padded: the same of (tokens, positions, mask).
    """
    place = open_huggingface(directory)
    config, params = place.config, read_weights(place)
    tokens = np.random.default_rng(1).integers(1, V, (2, T)).astype(np.int32)
    expected = whole(tokens)
    assert np.abs(expected).max() > 0.5
    logits = quick_jit(Transformer(config).apply)({"params": params}, tokens)
    inputs = padded_inputs(tokens)
    real = inputs[2].astype(bool)
    cached = cached_logits(config, params, *inputs)[real] - padded(*inputs)[real]
    return config, params, float(np.abs(logits - expected).max()), float(np.abs(cached).max())


def write(directory, family, config, params) -> dict:
    """A directory of the family's config and tensors, as its reader and transformers want them."""
    directory.mkdir()
    values = {"model_type": family.model_type, "architectures": [family.architecture], **family.config_to(config)}
    tensors = dict(write_tensors(params, family.entries(config)))
    (directory / "config.json").write_text(json.dumps(values))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES])
def test_a_directory_of_transformers(case, tmp_path, record_property):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, arguments = CASES[case]
    model_class = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    # The eager path of Falcon's ALiBi adds the bias twice (transformers 5).
    attention = "sdpa" if arguments.get("alibi") else "eager"
    settings = {**arguments, "attn_implementation": attention, "pad_token_id": 0}
    model = model_class(getattr(transformers, f"{kind}Config")(**settings)).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(draw(name, parameter.shape, rng)))
            if kind == "Nemotron" and "norm" in name and name.endswith("weight"):
                parameter.sub_(1.0)
    model.save_pretrained(tmp_path / "theirs")

    def whole(tokens, **more):
        with torch.no_grad():
            return model(torch.tensor(tokens), **more).logits.numpy()

    def padded(tokens, positions, mask):
        takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        more = {"position_ids": torch.tensor(positions)} if takes_positions else {}
        return whole(tokens, attention_mask=torch.tensor(mask), **more)

    config, params, plain, cached = largest_differences(tmp_path / "theirs", whole, padded)
    record_property("largest_differences", (case, plain, cached))
    assert max(plain, cached) < 1e-4

    family = family_for(config)
    assert family.model_type == case.split(",")[0]
    write(tmp_path / "ours", family, config, params)
    again, info = model_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    expected, got = model.state_dict(), again.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    again.set_attn_implementation(attention)
    tokens = torch.arange(1, T)[None]
    with torch.no_grad():
        difference = (model(tokens).logits - again.eval()(tokens).logits).abs().max()
    assert difference < 1e-5  # the config says the same; transformers has two roundings of gelu's tanh


def turned(x_THK: np.ndarray, theta: float) -> np.ndarray:
    """Rotary embeddings, dimension i paired with i + K / 2."""
    half = x_THK.shape[-1] // 2
    angles = np.arange(len(x_THK))[:, None, None] * theta ** -(np.arange(half) / half)
    a, b = x_THK[..., :half], x_THK[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)


def attended(q_THK: np.ndarray, k_TGK: np.ndarray, v_TGK: np.ndarray) -> np.ndarray:
    """Causal attention, [T, H * K]."""
    heads = q_THK.shape[1] // k_TGK.shape[1]
    k_THK, v_THK = np.repeat(k_TGK, heads, axis=1), np.repeat(v_TGK, heads, axis=1)
    scores = np.einsum("thk,shk->hts", q_THK, k_THK) / np.sqrt(q_THK.shape[-1])
    scores = np.where(np.tri(len(q_THK), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), v_THK).reshape(len(q_THK), -1)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (1 + np.exp(-gate)) * up


def rms(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def layer_norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain


def openelm(c: dict, t: dict, tokens_T: np.ndarray) -> np.ndarray:
    x = t["transformer.token_embeddings.weight"][tokens_T]
    for i, (heads, kv_heads) in enumerate(zip(c["num_query_heads"], c["num_kv_heads"], strict=True)):
        p = f"transformer.layers.{i}"
        y = rms(x, t[f"{p}.attn_norm.weight"], 1e-6) @ t[f"{p}.attn.qkv_proj.weight"].T
        q, k, v = np.split(y.reshape(len(x), -1, c["head_dim"]), [heads, heads + kv_heads], axis=1)
        q, k = (rms(y, t[f"{p}.attn.{n}_norm.weight"], 1e-6) for n, y in (("q", q), ("k", k)))
        y = attended(turned(q, c["rope_freq_constant"]), turned(k, c["rope_freq_constant"]), v)
        x = x + y @ t[f"{p}.attn.out_proj.weight"].T
        y = rms(x, t[f"{p}.ffn_norm.weight"], 1e-6) @ t[f"{p}.ffn.proj_1.weight"].T
        x = x + swiglu(*np.split(y, 2, axis=-1)) @ t[f"{p}.ffn.proj_2.weight"].T
    return rms(x, t["transformer.norm.weight"], 1e-6) @ t["transformer.token_embeddings.weight"].T


def llama_like(c: dict, t: dict, tokens_T: np.ndarray) -> np.ndarray:
    """MobileLLM (each layer as often as layer_sharing says) and MiniCPM (its three scales)."""
    layers, dim = c["num_hidden_layers"], c["hidden_size"]
    depth = c.get("scale_depth", layers**0.5) / layers**0.5
    x = t["model.embed_tokens.weight"][tokens_T] * c.get("scale_emb", 1)
    for i in np.repeat(np.arange(layers), 2 if c.get("layer_sharing") else 1):
        p = f"model.layers.{i}"
        y = rms(x, t[f"{p}.input_layernorm.weight"], c["rms_norm_eps"])
        q, k, v = ((y @ t[f"{p}.self_attn.{n}_proj.weight"].T).reshape(len(x), -1, K) for n in "qkv")
        y = attended(turned(q, c["rope_theta"]), turned(k, c["rope_theta"]), v)
        x = x + y @ t[f"{p}.self_attn.o_proj.weight"].T * depth
        y = rms(x, t[f"{p}.post_attention_layernorm.weight"], c["rms_norm_eps"])
        y = swiglu(*(y @ t[f"{p}.mlp.{n}_proj.weight"].T for n in ("gate", "up")))
        x = x + y @ t[f"{p}.mlp.down_proj.weight"].T * depth
    x = rms(x, t["model.norm.weight"], c["rms_norm_eps"]) / (dim / c.get("dim_model_base", dim))
    return x @ t["model.embed_tokens.weight"].T


def internlm2(c: dict, t: dict, tokens_T: np.ndarray) -> np.ndarray:
    """LLaMA's equations, with q, k and v cut from wqkv: each key/value head stands behind its queries."""
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    x = t["model.tok_embeddings.weight"][tokens_T]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}"
        y = rms(x, t[f"{p}.attention_norm.weight"], c["rms_norm_eps"])
        y = y @ t[f"{p}.attention.wqkv.weight"].T + t[f"{p}.attention.wqkv.bias"]
        groups = y.reshape(len(x), kv_heads, heads // kv_heads + 2, K)
        q, k, v = groups[:, :, :-2].reshape(len(x), heads, K), groups[:, :, -2], groups[:, :, -1]
        y = attended(turned(q, c["rope_theta"]), turned(k, c["rope_theta"]), v)
        x = x + y @ t[f"{p}.attention.wo.weight"].T + t[f"{p}.attention.wo.bias"]
        y = rms(x, t[f"{p}.ffn_norm.weight"], c["rms_norm_eps"])
        y = swiglu(*(y @ t[f"{p}.feed_forward.{n}.weight"].T for n in ("w1", "w3")))
        x = x + y @ t[f"{p}.feed_forward.w2.weight"].T
    return rms(x, t["model.norm.weight"], c["rms_norm_eps"]) @ t["output.weight"].T


def openlm(c: dict, t: dict, tokens_T: np.ndarray) -> np.ndarray:
    c = c.get("params_args_dict", c)
    x = t["model.tok_embeddings.weight"][tokens_T]
    for i in range(c["n_layers"]):
        p = f"model.layers.{i}"
        y = layer_norm(x, t[f"{p}.attention_norm.weight"]) @ t[f"{p}.attention.in_proj.weight"].T
        q, k, v = np.split(y, 3, axis=-1)
        if c["qk_norm"]:
            q, k = (layer_norm(y, t[f"{p}.attention.{n}_norm.weight"]) for n, y in (("q", q), ("k", k)))
        q, k, v = (y.reshape(len(x), c["n_heads"], -1) for y in (q, k, v))
        x = x + attended(turned(q, 1e4), turned(k, 1e4), v) @ t[f"{p}.attention.out_proj.weight"].T
        y = layer_norm(x, t[f"{p}.ffn_norm.weight"]) @ t[f"{p}.feed_forward.w12.weight"].T
        x = x + swiglu(*np.split(y, 2, axis=-1)) @ t[f"{p}.feed_forward.w3.weight"].T
    return layer_norm(x, t["model.norm.weight"]) @ t["model.output.weight"].T


OPENELM = {"vocab_size": V, "num_transformer_layers": 3, "model_dim": D, "head_dim": K, "max_context_length": CONTEXT}
OPENELM |= {"num_query_heads": [4, 4, 8], "num_kv_heads": [1, 1, 2], "ffn_multipliers": [0.5, 0.77, 1.0]}
OPENELM |= {"ffn_dim_divisor": 8, "rope_freq_constant": 10000, "normalize_qk_projections": True, "ffn_with_glu": True}
LLAMA_LIKE = {**ROTARY, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 5e3, "rope_scaling": None}
SHARED = {"share_embedding": True, "tie_word_embeddings": False, "layer_sharing": True, "head_dim": K}
MINICPM_SCALES = {"scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 16}
OPENLM = {"vocab_size": V, "n_layers": L, "dim": D, "n_heads": H, "seq_len": CONTEXT, "norm_eps": 1e-5}
OPENLM |= {"ffn_type": "swiglu_torch", "qk_norm": True, "weight_tying": False, "positional_embedding_type": "rotary"}
OPENLM |= {"model_norm": "gain_only_lp_layer_norm", "moe_freq": 0, "attn_activation": None, "post_embed_norm": False}
OWN_CODE = {
    "openelm": (openelm, OPENELM),
    "mobilellm": (llama_like, {**LLAMA_LIKE, **SHARED}),
    "minicpm": (llama_like, {**LLAMA_LIKE, **MINICPM_SCALES}),
    "openlm": (openlm, {"params": None, "params_args_dict": OPENLM}),
    "internlm2": (internlm2, {**LLAMA_LIKE, "bias": True}),
}


@pytest.mark.parametrize("model_type", OWN_CODE)
def test_a_directory_that_brings_its_own_code(model_type, tmp_path, record_property):
    reference, values = OWN_CODE[model_type]
    family = FAMILIES[model_type]
    values = {"model_type": model_type, "auto_map": {"AutoModelForCausalLM": "evil.Model"}, **values}
    config = family.config_from(values)
    rng = np.random.default_rng(0)
    leaves = abstract_leaves(config)

    def zeros(leaf):
        shape = leaves[leaf.path].shape
        return np.zeros(shape if leaf.repeat is None else shape[1:], np.float32)

    entries = family.entries(config)
    tensors = {e.name: draw(e.name, e.join([zeros(leaf) for leaf in e.leaves]).shape, rng) for e in entries}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(values))
    (tmp_path / "theirs" / "evil.py").write_text("raise SystemExit('code of a model directory was run')")
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    exact = {name: array.astype(np.float64) for name, array in tensors.items()}

    def whole(tokens):
        return np.stack([reference(values, exact, row) for row in tokens])

    def padded(tokens, positions, mask):
        logits = np.zeros((*tokens.shape, V))
        for row, real in enumerate(mask.astype(bool)):
            logits[row, real] = reference(values, exact, tokens[row, real])
        return logits

    config, params, plain, cached = largest_differences(tmp_path / "theirs", whole, padded)
    record_property("largest_differences", (model_type, plain, cached))
    assert max(plain, cached) < 1e-4

    written = write(tmp_path / "ours", family_for(config, model_type), config, params)
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
    assert open_huggingface(tmp_path / "ours").config == config
