"""Hugging Face's Gemma families, first to third; of the third's pictures only the text part."""

from __future__ import annotations

from typing import Any

from slmjax.errors import UserError
from slmjax.formats.huggingface import config_values as hf
from slmjax.formats.huggingface.config_values import Values
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.llama_names import IGNORED, llama_entries
from slmjax.formats.huggingface.rms_norm import attention_scale, biases, common_values, fields
from slmjax.models.config import ModelConfig

GEMMA: Values = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
GEMMA2: Values = {
    **GEMMA,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3: Values = {
    **GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 1e4,
}


def _gemma_fields(values: Values, activation: Any, theta: float = 10_000.0) -> dict[str, Any]:
    hf.require(values, use_bidirectional_attention=False)
    common = fields({**values, "hidden_act": activation}, theta=theta)
    return {
        **common,
        **biases(values),
        "norm_unit_offset": True,
        "norm_scale_float32": True,
        "embedding_multiplier": common["embed_dim"] ** 0.5,
    }


def _sandwich(values: Values, common: dict[str, Any]) -> dict[str, Any]:
    scalar = hf.number(values, "query_pre_attn_scalar")
    if scalar <= 0:
        raise UserError(f"The config.json: query_pre_attn_scalar is {scalar}; it must be above 0.")
    return {
        **common,
        "norm_placement": "sandwich",
        "attention_scale": attention_scale(common, scalar**-0.5),
        "attention_softcap": hf.optional_number(values, "attn_logit_softcapping"),
        "logit_softcap": hf.optional_number(values, "final_logit_softcapping"),
    }


def _gemma_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, GEMMA)
    # The first releases say "gelu" in hidden_act and mean its tanh form; hidden_activation came with the correction.
    return ModelConfig(**_gemma_fields(values, values.get("hidden_activation") or "gelu_pytorch_tanh"))


def _gemma2_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, GEMMA2)
    common = _sandwich(values, _gemma_fields(values, values["hidden_activation"]))
    types = [("sliding_attention", "full_attention")[i % 2] for i in range(common["num_layers"])]
    return ModelConfig(**common, **hf.window_fields(values, types))


def _gemma3_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, GEMMA3)
    plain = {key: value for key, value in values.items() if not key.startswith("rope_")}
    common = _sandwich(values, _gemma_fields(plain, values["hidden_activation"]))
    rope = hf.rope_from(values, theta=1e6, layer_type="full_attention")
    local_values = {**values, "rope_scaling": None, "rope_theta": values["rope_local_base_freq"]}
    local = hf.rope_from(local_values, theta=1e4, layer_type="sliding_attention")
    if local.scaling is not None or rope.fraction != 1 or local.fraction != 1:
        raise UserError("The config.json: the rope of its local layers is scaled or partial, which cannot be run here.")
    every = hf.integer(values, "sliding_window_pattern") or 1
    types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(common["num_layers"])]
    window = hf.window_fields(values, types)
    return ModelConfig(**common | rope.fields(), **window, qk_norm="head", rope_theta_local=local.theta)


def _gemma_to(config: ModelConfig) -> Values:
    values = {**common_values(config), "attention_bias": config.qkv_bias}
    return {**values, "hidden_activation": values["hidden_act"]}


def _gemma2_to(config: ModelConfig) -> Values:
    return {
        **_gemma_to(config),
        "layer_types": hf.layer_types(config),
        "sliding_window": config.window,
        "query_pre_attn_scalar": round(config.softmax_scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _gemma3_to(config: ModelConfig) -> Values:
    values = _gemma2_to(config)
    full = [i + 1 for i, kind in enumerate(values["layer_types"]) if kind == "full_attention"]
    local = config.rope_theta_local or config.rope_theta
    ropes = {
        "full_attention": values["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    pattern = full[0] if full else config.num_layers + 1  # what layer_types was before transformers 4.50
    return {
        **values,
        "rope_parameters": ropes,
        "rope_local_base_freq": local,
        "sliding_window_pattern": pattern,
    }


def _pictures_from(values: Values) -> ModelConfig:
    return _gemma3_from(hf.mapping(values, "text_config"))


def _pictures_to(config: ModelConfig) -> Values:
    raise UserError("A text-only model cannot be saved as gemma3 (image and text): name the family gemma3_text.")


_TEXT_PART = (
    (r"^(model\.language_model|language_model\.model)\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
)
_PICTURES = (*IGNORED, r"(model\.)?(vision_tower|multi_modal_projector)\..*")

FAMILIES = (
    HuggingFaceFamily("gemma", "GemmaForCausalLM", _gemma_from, _gemma_to, llama_entries, IGNORED),
    HuggingFaceFamily("gemma2", "Gemma2ForCausalLM", _gemma2_from, _gemma2_to, llama_entries, IGNORED),
    HuggingFaceFamily("gemma3_text", "Gemma3ForCausalLM", _gemma3_from, _gemma3_to, llama_entries, IGNORED),
    HuggingFaceFamily(
        *("gemma3", "Gemma3ForConditionalGeneration", _pictures_from, _pictures_to, llama_entries),
        ignored=_PICTURES,
        renames=_TEXT_PART,
    ),
)
