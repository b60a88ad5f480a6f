"""Directories of the LayerNorm families and of those that bring their own code, in and out, against their references.

Of each family a tiny random network with its quirks on, and no gain or bias at its neutral value. transformers builds
and runs it where it has the class; else a short numpy network, written from the papers and released configurations.
`pytest -rP` prints each family's largest differences.
"""

import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from slmjax.errors import UserError
from slmjax.formats.huggingface import open_huggingface, read_weights
from slmjax.formats.huggingface_export import family_for
from slmjax.formats.huggingface_families import FAMILIES
from slmjax.formats.weight_map import write_tensors
from slmjax.models.kv_cache import empty_cache
from slmjax.models.transformer import Transformer

V, D, H, K, F, L, CONTEXT = 67, 32, 4, 8, 48, 2, 64
T, CHUNK, PADDING = 24, 3, 7
COMMON = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H}
ROTARY = {**COMMON, "intermediate_size": F, "max_position_embeddings": CONTEXT}
GPT2 = {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": H, "n_positions": CONTEXT}
OPT = {**COMMON, "ffn_dim": F, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": D}
FALCON = {**COMMON, "max_position_embeddings": CONTEXT}
GALACTICA = {"activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False}
NEW_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}
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
    "falcon, rw": ("Falcon", {**FALCON, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
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
}
SLOW = {"gpt2, as cerebras-gpt", "gpt2, unscaled, untied", "falcon, new with one norm", "stablelm, parallel", "opt"}


def slow_marks(names, slow):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    gain = re.search(r"(norm\w*|ln_\w+)\.weight$", name) is not None
    return (float(gain) + 0.2 * rng.standard_normal(shape)).astype(np.float32)


def padded_inputs(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, positions, mask): the second row loses its first tokens to padding on the left."""
    mask = np.ones_like(tokens)
    mask[1, :PADDING] = 0
    return tokens * mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0) * mask, mask


def cached_logits(config, params, tokens, positions, mask) -> np.ndarray:
    """Logits through the key/value cache, a few tokens at a time."""

    @jax.jit
    def step(cache, tokens, positions, mask):
        return Transformer(config).apply({"params": params}, tokens, positions, mask, cache)

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
    logits = jax.jit(Transformer(config).apply)({"params": params}, tokens)
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


@pytest.mark.parametrize("case", slow_marks(CASES, SLOW))
def test_a_directory_of_transformers(case, tmp_path):
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
    print(f"| {case} | {plain:.1e} | {cached:.1e} |")
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
