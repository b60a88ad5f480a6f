"""Networks whose directories bring their own code, which is never run: OpenELM, MobileLLM, MiniCPM, DCLM, InternLM2.

Their keys and tensor names are those of apple/OpenELM-*, facebook/MobileLLM-*, openbmb/MiniCPM-*, internlm/internlm2-*
and TRI-ML/DCLM-1B (OpenLM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.entries import ends, fused_gate_up, fused_qkv, grouped_qkv, norm, product, qk_norms
from slmjax.formats.huggingface.config_values import (
    MAX_LAYERS,
    Values,
    activation,
    activation_name,
    flag,
    integer,
    mapping,
    number,
    optional_number,
    require,
    spelled,
    with_defaults,
)
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.llama_names import IGNORED, llama_entries
from slmjax.formats.huggingface.rms_norm import LLAMA, biases, common_values, fields
from slmjax.formats.weight_map import Entry, layer_leaf
from slmjax.models.config import ModelConfig
from slmjax.models.families.openelm import make_divisible


def _each_layer(values: Values, key: str, layers: int) -> list[float]:
    listed = values.get(key)
    if not isinstance(listed, list) or len(listed) != layers:
        raise UserError(f"The config.json: {key} must list one number for each of the {layers} layers.")
    return [number({key: item}, key) for item in listed]


def _one_or_all(numbers: Sequence[int]) -> int | tuple[int, ...]:
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _openelm_from(values: Values) -> ModelConfig:
    values = spelled(values, {}, ffn_dim_divisor=256, activation_fn_name="swish", share_input_output_layers=True)
    require(values, ffn_with_glu=True, normalization_layer_name="rms_norm", normalize_qk_projections=True)
    layers, dim = integer(values, "num_transformer_layers", most=MAX_LAYERS), integer(values, "model_dim")
    divisor = max(1, integer(values, "ffn_dim_divisor"))
    heads, kv_heads = (_each_layer(values, key, layers) for key in ("num_query_heads", "num_kv_heads"))
    widths = [make_divisible(m * dim, divisor) for m in _each_layer(values, "ffn_multipliers", layers)]
    return ModelConfig(
        vocab_size=integer(values, "vocab_size"),
        num_layers=layers,
        embed_dim=dim,
        head_dim=integer(values, "head_dim"),
        num_heads=_one_or_all([int(h) for h in heads]),
        num_kv_heads=_one_or_all([int(h) for h in kv_heads]),
        ffn_dim=_one_or_all(widths),
        context_length=integer(values, "max_context_length"),
        rope_theta=optional_number(values, "rope_freq_constant") or 10_000.0,
        activation=activation(values, "activation_fn_name"),
        qk_norm="head",
        norm_eps=1e-6,
        tie_embeddings=flag(values, "share_input_output_layers"),
        init_std=optional_number(values, "initializer_range") or 0.02,
        init_scale_residual=False,
    )


def _openelm_to(config: ModelConfig) -> Values:
    specs = config.layers
    return {
        "vocab_size": config.vocab_size,
        "num_transformer_layers": config.num_layers,
        "model_dim": config.embed_dim,
        "head_dim": config.head_dim,
        "num_query_heads": [spec.num_heads for spec in specs],
        "num_kv_heads": [spec.num_kv_heads for spec in specs],
        "num_gqa_groups": specs[0].num_heads // specs[0].num_kv_heads,
        "ffn_multipliers": [spec.ffn_dim / config.embed_dim for spec in specs],
        "ffn_dim_divisor": reduce(math.gcd, (spec.ffn_dim for spec in specs)),
        "ffn_with_glu": True,
        "max_context_length": config.context_length,
        "rope_max_length": 2 * config.context_length,
        "rope_freq_constant": config.rope_theta,
        "activation_fn_name": "swish" if config.activation == "silu" else activation_name(config),
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "share_input_output_layers": config.tie_embeddings,
        "initializer_range": config.init_std or 0.02,
    }


def _openelm_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "transformer.token_embeddings", "transformer.norm")
    for i in range(config.num_layers):
        layer, leaf = f"transformer.layers.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.attn_norm", "attention_norm", leaf)
        entries += norm(config, f"{layer}.ffn_norm", "ffn_norm", leaf)
        entries += fused_qkv(config, i, f"{layer}.attn.qkv_proj")
        entries += qk_norms(config, f"{layer}.attn.", leaf)
        entries += product(config, f"{layer}.attn.out_proj", "attention/o_proj", leaf)
        entries += fused_gate_up(config, i, f"{layer}.ffn.proj_1")
        entries += product(config, f"{layer}.ffn.proj_2", "feedforward/down_proj", leaf)
    return entries


def _mobilellm_from(values: Values) -> ModelConfig:
    values = spelled(values, {}, hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=2048)
    tied = flag(values, "share_embedding") or flag(values, "tie_word_embeddings")
    repeats = 2 if flag(values, "layer_sharing") else 1
    return ModelConfig(**(fields(values) | {"tie_embeddings": tied}), **biases(values), block_repeats=repeats)


def _mobilellm_to(config: ModelConfig) -> Values:
    return {
        **common_values(config),
        "tie_word_embeddings": False,
        "share_embedding": config.tie_embeddings,
        "layer_sharing": config.block_repeats == 2,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ffn_bias,
    }


def _minicpm_from(values: Values) -> ModelConfig:
    values = spelled(values, {}, hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=2048)
    values = {"tie_word_embeddings": True, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1, **values}
    require(values, attention_bias=False)
    common, base = fields(values), number(values, "dim_model_base")
    if not base or not common["num_layers"]:
        raise UserError("The config.json: dim_model_base and num_hidden_layers must be above 0.")
    return ModelConfig(
        **common,
        embedding_multiplier=number(values, "scale_emb"),
        residual_multiplier=number(values, "scale_depth") / math.sqrt(common["num_layers"]),
        logit_divisor=common["embed_dim"] / base,
    )


def _minicpm_to(config: ModelConfig) -> Values:
    return {
        **common_values(config),
        "scale_emb": config.embedding_multiplier,
        "scale_depth": _quotient_that_gives(config.residual_multiplier, math.sqrt(config.num_layers)),
        "dim_model_base": config.embed_dim / config.logit_divisor,
    }


def _quotient_that_gives(quotient: float, divisor: float) -> float:
    """The x of fewest digits with x / divisor == quotient, exactly; the rounded product where there is none."""
    product = quotient * divisor
    return next((x for d in range(1, 18) if (x := float(f"{product:.{d}g}")) / divisor == quotient), product)


def _openlm_from(values: Values) -> ModelConfig:
    values = values | mapping(values, "params") | mapping(values, "params_args_dict")
    if values.get("qk_norm") is not None and values.get("apply_qk_norm", values["qk_norm"]) != values["qk_norm"]:
        raise UserError("The config.json: qk_norm and apply_qk_norm differ, so that it is not clear which one holds.")
    values["norm_type"] = values.get("norm_type") or values.get("model_norm")
    values["ffn_type"] = str(values.get("ffn_type") or "swiglu").removesuffix("_torch")
    if values["norm_type"] == "gain_only_layer_norm":
        values["norm_type"] = "gain_only_lp_layer_norm"  # the other one rounds less
    values["norm_type"] = values["norm_type"] or "default"
    require(values, norm_type="gain_only_lp_layer_norm", ffn_type="swiglu", positional_embedding_type="rotary")
    require(values, post_embed_norm=False, attn_activation=None, attn_seq_scalar=None, moe_freq=0)
    dim = integer(values, "dim")
    return ModelConfig(
        vocab_size=integer(values, "vocab_size"),
        num_layers=integer(values, "n_layers", most=MAX_LAYERS),
        embed_dim=dim,
        num_heads=integer(values, "n_heads"),
        ffn_dim=_swiglu_width(dim),
        context_length=integer(values, "seq_len"),
        norm="layer",
        norm_eps=number(values, "norm_eps"),
        qk_norm="full" if flag(values, "qk_norm") or flag(values, "apply_qk_norm") else "none",
        tie_embeddings=flag(values, "weight_tying"),
        init_scale_residual=False,
    )


def _swiglu_width(dim: int) -> int:
    """The feed-forward width of open_lm: two thirds of 4 x dim, up to the next multiple of 256."""
    return -(-(8 * dim // 3) // 256) * 256


def _openlm_to(config: ModelConfig) -> Values:
    shared: dict[str, Any] = {"qk_norm": config.qk_norm == "full", "apply_qk_norm": config.qk_norm == "full"}
    return {
        **shared,
        "vocab_size": config.vocab_size,
        "n_layers": config.num_layers,
        "dim": config.embed_dim,
        "n_heads": config.num_heads,
        "seq_len": config.context_length,
        "norm_eps": config.norm_eps,
        "norm_type": "gain_only_lp_layer_norm",
        "ffn_type": "swiglu_torch",
        "positional_embedding_type": "rotary",
        "post_embed_norm": False,
        "moe_freq": 0,
        "weight_tying": config.tie_embeddings,
    }


def _openlm_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "model.tok_embeddings", "model.norm", head="model.output")
    for i in range(config.num_layers):
        layer, leaf = f"model.layers.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.attention_norm", "attention_norm", leaf)
        entries += norm(config, f"{layer}.ffn_norm", "ffn_norm", leaf)
        entries += fused_qkv(config, i, f"{layer}.attention.in_proj")
        entries += qk_norms(config, f"{layer}.attention.", leaf)
        entries += product(config, f"{layer}.attention.out_proj", "attention/o_proj", leaf)
        entries += fused_gate_up(config, i, f"{layer}.feed_forward.w12")
        entries += product(config, f"{layer}.feed_forward.w3", "feedforward/down_proj", leaf)
    return entries


def _internlm2_from(values: Values) -> ModelConfig:
    values = with_defaults(values, {**LLAMA, "vocab_size": 103168, "bias": True})
    bias = flag(values, "bias")
    return ModelConfig(**(fields(values) | {"head_dim": 0}), qkv_bias=bias, attention_output_bias=bias)


def _internlm2_to(config: ModelConfig) -> Values:
    values = {**common_values(config), "bias": config.qkv_bias}
    del values["head_dim"]  # hidden_size / num_attention_heads
    return values


def _internlm2_entries(config: ModelConfig) -> list[Entry]:
    """The products of q, k and v are one, each key/value head behind the queries that it serves."""
    entries = ends(config, "model.tok_embeddings", "model.norm", head="output")
    for i in range(config.num_layers):
        layer, leaf = f"model.layers.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.attention_norm", "attention_norm", leaf)
        entries += norm(config, f"{layer}.ffn_norm", "ffn_norm", leaf)
        entries += grouped_qkv(config, i, f"{layer}.attention.wqkv")
        entries += product(config, f"{layer}.attention.wo", "attention/o_proj", leaf)
        for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            entries += product(config, f"{layer}.feed_forward.{theirs}", f"feedforward/{ours}_proj", leaf)
    return entries


FAMILIES = (
    HuggingFaceFamily("openelm", "OpenELMForCausalLM", _openelm_from, _openelm_to, _openelm_entries),
    HuggingFaceFamily("mobilellm", "MobileLLMForCausalLM", _mobilellm_from, _mobilellm_to, llama_entries, IGNORED),
    HuggingFaceFamily("minicpm", "MiniCPMForCausalLM", _minicpm_from, _minicpm_to, llama_entries, IGNORED),
    HuggingFaceFamily(
        "openlm",
        "OpenLMForCausalLM",
        _openlm_from,
        _openlm_to,
        _openlm_entries,
        ignored=(r"(model\.)?layers\.\d+\.attention\.pos_embed\..*",),
        renames=((r"^((tok_embeddings|layers|norm|output)\..*)$", r"model.\1"),),
    ),
    HuggingFaceFamily(
        "internlm2",
        "InternLM2ForCausalLM",
        _internlm2_from,
        _internlm2_to,
        _internlm2_entries,
        ignored=(r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq",),
    ),
)
