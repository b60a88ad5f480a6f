"""Hugging Face's families with RMSNorm: LLaMA and its heirs but Gemma. Defaults are those of transformers' classes.

A config.json leaves out what equals its class's default, so the defaults are part of the format.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.entries import interleaved
from slmjax.formats.huggingface import config_values as hf
from slmjax.formats.huggingface.config_values import Values
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.llama_names import IGNORED, llama_entries
from slmjax.formats.weight_map import Entry
from slmjax.models.config import ModelConfig

LLAMA: Values = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
MISTRAL: Values = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
QWEN2: Values = {
    **LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
QWEN3: Values = {**QWEN2, "head_dim": 128}
PHI3: Values = {
    **LLAMA,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
SMOLLM3: Values = {
    **LLAMA,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
}
OLMO2: Values = {**LLAMA, "vocab_size": 50304, "rms_norm_eps": 1e-5}
GRANITE: Values = {
    **LLAMA,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "attention_multiplier": 1.0,
}
GLM: Values = {
    **LLAMA,
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-7,
    "max_position_embeddings": 131072,
    "attention_bias": True,
}


def fields(values: Values, *, theta: float = 10_000.0) -> dict[str, Any]:
    """The fields of ModelConfig that all families of RMSNorm spell alike. theta: the family's default."""
    norm = {"norm_eps": hf.number(values, "rms_norm_eps"), "activation": hf.activation(values, "hidden_act")}
    return {**hf.sizes(values), **norm, **hf.rope_from(values, theta=theta).fields()}


def biases(values: Values) -> dict[str, Any]:
    """attention_bias stands for all four projections of attention, mlp_bias for all three of the feed-forward."""
    bias = hf.flag(values, "attention_bias")
    return {"qkv_bias": bias, "attention_output_bias": bias, "ffn_bias": hf.flag(values, "mlp_bias")}


def attention_scale(config: dict[str, Any], scale: float) -> float | None:
    """`scale` as a field of ModelConfig: None where it is the usual one."""
    head_dim = config["head_dim"] or config["embed_dim"] // max(config["num_heads"], 1)
    return None if scale == max(head_dim, 1) ** -0.5 else scale


def common_values(config: ModelConfig) -> Values:
    """The inverse of `fields`."""
    norm = {"rms_norm_eps": config.norm_eps, "hidden_act": hf.activation_name(config)}
    return {**hf.sizes_to(config), **norm, **hf.rope_to(config)}


def _llama_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, LLAMA)
    return ModelConfig(**fields(values), **biases(values))


def _llama_to(config: ModelConfig) -> Values:
    return {**common_values(config), "attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}


def _mistral_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, MISTRAL)
    return ModelConfig(**fields(values), **_one_window(values))


def _mistral_to(config: ModelConfig) -> Values:
    return {**common_values(config), "sliding_window": config.window if "local" in config.layer_pattern else None}


def _one_window(values: Values) -> dict[str, Any]:
    window = hf.optional_integer(values, "sliding_window")
    return {} if window is None else {"window": window, "layer_pattern": ("local",)}


def _qwen2_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, QWEN2)
    return ModelConfig(**fields(values), **_last_windows(values), qkv_bias=True)


def _qwen3_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, QWEN3)
    return ModelConfig(**fields(values), **biases(values), **_last_windows(values), qk_norm="head")


def _last_windows(values: Values) -> dict[str, Any]:
    """Layers from max_window_layers on have the window, where use_sliding_window says so and layer_types nothing."""
    if not hf.flag(values, "use_sliding_window"):
        return {}
    first, layers = hf.integer(values, "max_window_layers"), hf.sizes(values)["num_layers"]
    return hf.window_fields(values, ["sliding_attention" if i >= first else "full_attention" for i in range(layers)])


def _qwen2_to(config: ModelConfig) -> Values:
    types = hf.layer_types(config)
    windowed = "sliding_attention" in types
    return {
        **common_values(config),
        "layer_types": types,
        "use_sliding_window": windowed,
        "sliding_window": config.window if windowed else None,
        "max_window_layers": types.index("sliding_attention") if windowed else config.num_layers,
    }


def _qwen3_to(config: ModelConfig) -> Values:
    return {**_qwen2_to(config), "attention_bias": config.qkv_bias}


def _phi3_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, PHI3)
    return ModelConfig(**fields(values), **_one_window(values))


def _phi3_to(config: ModelConfig) -> Values:
    values = {**_mistral_to(config), **hf.rope_to(config, partial=True)}
    table = values["rope_scaling"]
    if table is not None and set(table) != {"type", "short_factor", "long_factor"}:  # counted by transformers 4
        raise UserError("model.rope_scaling is not one of phi3's: longrope by context_length over the original one.")
    return values


def _smollm3_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, SMOLLM3)
    common = fields(values, theta=2e6)
    layers, every = common["num_layers"], hf.integer(values, "no_rope_layer_interval") or 1
    rotates = values["no_rope_layers"]  # which, despite the name, has a 1 where the layer rotates
    if rotates is None:
        rotates = [int((i + 1) % every != 0) for i in range(layers)]
    if not isinstance(rotates, list) or len(rotates) < layers or not all(r in (0, 1) for r in rotates):
        raise UserError("The config.json: no_rope_layers must list a 0 or a 1 for each layer.")
    rotates = rotates[:layers]
    window = {}
    if hf.flag(values, "use_sliding_window"):
        window = hf.window_fields(values, ["full_attention" if r else "sliding_attention" for r in rotates])
    return ModelConfig(**common, **biases(values), **window, rope_pattern=tuple(bool(r) for r in rotates))


def _smollm3_to(config: ModelConfig) -> Values:
    values = {**_qwen2_to(config), **_llama_to(config)}
    del values["max_window_layers"]
    return {**values, "no_rope_layers": [int(spec.rope is not None) for spec in config.layers]}


def _olmo2_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, OLMO2)
    switches: Values = {"norm_placement": "output", "norm_scale_float32": True, "qk_norm": "full"}
    return ModelConfig(**fields(values), **biases(values), **switches)


def _olmo2_to(config: ModelConfig) -> Values:
    return {**common_values(config), "attention_bias": config.qkv_bias}


def _granite_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, GRANITE)
    common = fields(values)
    return ModelConfig(
        **common,
        **biases(values),
        embedding_multiplier=hf.number(values, "embedding_multiplier"),
        residual_multiplier=hf.number(values, "residual_multiplier"),
        logit_divisor=hf.number(values, "logits_scaling"),
        attention_scale=attention_scale(common, hf.number(values, "attention_multiplier")),
    )


def _granite_to(config: ModelConfig) -> Values:
    return {
        **_llama_to(config),
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": config.logit_divisor,
        "attention_multiplier": config.softmax_scale,
    }


def _glm_from(values: Values, **switches: Any) -> ModelConfig:
    values = hf.with_defaults(values, GLM)
    rope = hf.rope_from(values, fraction=0.5).fields()
    return ModelConfig(**(fields(values) | rope), qkv_bias=hf.flag(values, "attention_bias"), **switches)


def _glm_to(config: ModelConfig) -> Values:
    return {**common_values(config), **hf.rope_to(config, partial=True), "attention_bias": config.qkv_bias}


def _glm_entries(config: ModelConfig) -> list[Entry]:
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    if config.norm_placement == "sandwich":
        norms |= {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffn_norm"}
    return interleaved(config, llama_entries(config, fused_gate=True, norms=norms))


_glm4_from = partial(_glm_from, norm_placement="sandwich")
_phi3_entries = partial(llama_entries, fused=True)

# The plainest first: on export a config is of the first family that can say it.
FAMILIES = (
    HuggingFaceFamily("llama", "LlamaForCausalLM", _llama_from, _llama_to, llama_entries, IGNORED),
    HuggingFaceFamily("mistral", "MistralForCausalLM", _mistral_from, _mistral_to, llama_entries, IGNORED),
    HuggingFaceFamily("qwen2", "Qwen2ForCausalLM", _qwen2_from, _qwen2_to, llama_entries, IGNORED),
    HuggingFaceFamily("qwen3", "Qwen3ForCausalLM", _qwen3_from, _qwen3_to, llama_entries, IGNORED),
    HuggingFaceFamily("smollm3", "SmolLM3ForCausalLM", _smollm3_from, _smollm3_to, llama_entries, IGNORED),
    HuggingFaceFamily("olmo2", "Olmo2ForCausalLM", _olmo2_from, _olmo2_to, llama_entries, IGNORED),
    HuggingFaceFamily("granite", "GraniteForCausalLM", _granite_from, _granite_to, llama_entries, IGNORED),
    HuggingFaceFamily("phi3", "Phi3ForCausalLM", _phi3_from, _phi3_to, _phi3_entries, IGNORED),
    HuggingFaceFamily("glm", "GlmForCausalLM", _glm_from, _glm_to, _glm_entries, IGNORED),
    HuggingFaceFamily("glm4", "Glm4ForCausalLM", _glm4_from, _glm_to, _glm_entries, IGNORED),
)
