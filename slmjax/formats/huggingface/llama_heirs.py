"""Hugging Face's later heirs of LLaMA: EXAONE-4, OLMo-3, Hunyuan, ERNIE-4.5. Defaults are those of transformers'.

EXAONE-4 and OLMo-3 normalize what their sub-layers give and have windows in most layers; in EXAONE-4 the others then do
not rotate, in OLMo-3 only they have a scaled rotation. Hunyuan normalizes queries and keys after it has rotated them.
ERNIE-4.5 is a LLaMA that rotates neighbouring dimensions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.entries import interleaved
from slmjax.formats.huggingface import config_values as hf
from slmjax.formats.huggingface.config_values import Values
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.llama_names import IGNORED, llama_entries
from slmjax.formats.huggingface.rms_norm import LLAMA, OLMO2, biases, common_values, fields
from slmjax.formats.weight_map import Entry
from slmjax.models.config import ModelConfig

EXAONE4: Values = {
    **LLAMA,
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}
OLMO3: Values = {**OLMO2, "sliding_window": 4096}
HUNYUAN: Values = {**LLAMA, "vocab_size": 290943, "rms_norm_eps": 1e-5}
ERNIE: Values = {
    **LLAMA,
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
THETA = 5e5  # of OLMo-3 and ERNIE-4.5


def _exaone4_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, EXAONE4)
    common, window = fields(values), hf.optional_integer(values, "sliding_window")
    every = 1
    if window is not None and values.get("layer_types") is None:
        every = hf.integer(values, "sliding_window_pattern") or 1
    windows = hf.window_fields(values, _one_full_in(every, common["num_layers"]))
    # Where there is a window at all, layers without it do not rotate.
    local = [window is None or kind == "local" for kind in windows.get("layer_pattern", ("global",))]
    return ModelConfig(**common, **windows, rope_pattern=tuple(local), norm_placement="output", qk_norm="head")


def _exaone4_to(config: ModelConfig) -> Values:
    types = hf.layer_types(config)
    values = {**common_values(config), "layer_types": types, "sliding_window": None}
    if "sliding_attention" in types:
        values |= {"sliding_window": config.window, "sliding_window_pattern": _first_full(types)}
    elif not any(spec.rope is not None for spec in config.layers):  # that there is a window says that no layer rotates
        values["sliding_window"] = config.context_length
    return values


def _olmo3_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, OLMO3)
    plain = {key: value for key, value in values.items() if not key.startswith("rope_")}
    common = fields(plain)
    rope = hf.rope_from(values, theta=THETA, layer_type="full_attention")
    # As transformers 4 has it: the scaling is of the layers without a window alone.
    local = hf.rope_from({**values, "rope_scaling": None}, theta=THETA, layer_type="sliding_attention")
    windows = hf.window_fields(values, _one_full_in(4, common["num_layers"]))
    if windows and (local.scaling is not None or local.fraction != 1):
        raise UserError("The config.json: the rope of windowed layers is scaled or partial, which cannot be run here.")
    differs = windows and (rope.scaling, rope.theta) != (None, local.theta)
    return ModelConfig(
        **common | rope.fields(),
        **biases(values),
        **windows,
        rope_theta_local=local.theta if differs else None,
        norm_placement="output",
        norm_scale_float32=True,
        qk_norm="full",
    )


def _olmo3_to(config: ModelConfig) -> Values:
    values, types = common_values(config), hf.layer_types(config)
    local = config.rope_theta if config.rope_theta_local is None else config.rope_theta_local
    ropes = {
        "full_attention": values["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    # transformers wants a number even where no layer has a window.
    window = config.window if "sliding_attention" in types else config.context_length
    more = {"attention_bias": config.qkv_bias, "layer_types": types, "sliding_window": window}
    return {**values, **more, "rope_parameters": ropes}


def _one_full_in(every: int, layers: int) -> list[str]:
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]


def _first_full(types: list[str]) -> int:
    """The period of layers of which the last is whole: what layer_types was before transformers 4.50."""
    return types.index("full_attention") + 1 if "full_attention" in types else len(types) + 1


def _hunyuan_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, HUNYUAN)
    hf.require(values, mlp_bias=False, use_qk_norm=True, use_cla=False)
    bias = hf.flag(values, "attention_bias")
    return ModelConfig(
        **fields(_with_stretched_theta(values)),
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm="head",
        qk_norm_after_rope=True,
    )


def _with_stretched_theta(values: Values) -> Values:
    """The config with `alpha` worked into theta (NTK-aware scaling; bloc97 2023).

    The files call it "dynamic", which it is not: the frequencies depend on no length.
    """
    table = {**hf.mapping(values, "rope_parameters"), **hf.mapping(values, "rope_scaling")}
    kind = table.get("rope_type") or table.get("type")
    if kind != "dynamic" or not table.get("alpha"):
        return values
    alpha, sizes = hf.number(table, "alpha"), hf.sizes(values)
    dim = sizes["head_dim"] or sizes["embed_dim"] // max(sizes["num_heads"], 1)
    if alpha <= 0 or dim <= 2:
        raise UserError(f"The config.json: the rope's alpha is {alpha}, which heads of {dim} dimensions cannot have.")
    plain: dict[str, Any] = {**values, "rope_parameters": None, "rope_scaling": None}
    theta = hf.rope_from({**plain, "rope_theta": table.get("rope_theta") or values.get("rope_theta")}).theta
    return {**plain, "rope_theta": theta * alpha ** (dim / (dim - 2))}


def _hunyuan_to(config: ModelConfig) -> Values:
    return {**common_values(config), "attention_bias": config.qkv_bias}


def _hunyuan_entries(config: ModelConfig) -> list[Entry]:
    def own(name: str) -> str:
        return name.replace(".q_norm.", ".query_layernorm.").replace(".k_norm.", ".key_layernorm.")

    return [dataclasses.replace(entry, name=own(entry.name)) for entry in llama_entries(config)]


def _ernie_from(values: Values) -> ModelConfig:
    values = hf.with_defaults(values, ERNIE)
    hf.require(values, compression_ratio=1.0)  # of positions, in the code that the first releases brought
    bias = hf.flag(values, "use_bias")
    return ModelConfig(**fields(values, theta=THETA), qkv_bias=bias, attention_output_bias=bias, ffn_bias=bias)


def _ernie_to(config: ModelConfig) -> Values:
    return {**common_values(config), "use_bias": config.qkv_bias}


def _ernie_entries(config: ModelConfig) -> list[Entry]:
    return interleaved(config, llama_entries(config))


FAMILIES = (
    HuggingFaceFamily("exaone4", "Exaone4ForCausalLM", _exaone4_from, _exaone4_to, llama_entries, IGNORED),
    HuggingFaceFamily("olmo3", "Olmo3ForCausalLM", _olmo3_from, _olmo3_to, llama_entries, IGNORED),
    HuggingFaceFamily(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", _hunyuan_from, _hunyuan_to, _hunyuan_entries, IGNORED
    ),
    HuggingFaceFamily("ernie4_5", "Ernie4_5ForCausalLM", _ernie_from, _ernie_to, _ernie_entries, IGNORED),
)
