"""GPT-2 and its kin: GPT-Neo (TinyStories), GPT-J, GPT-BigCode (StarCoder, SantaCoder), StarCoder2, MPT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

from slmjax.errors import UserError, shown
from slmjax.formats.entries import ends, fused_qkv, grouped_qkv, interleaved, norm, plain_layers, product
from slmjax.formats.huggingface import config_values as hf
from slmjax.formats.huggingface.config_values import Values
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.weight_map import Entry, Leaf, as_is, layer_leaf
from slmjax.models.config import ModelConfig, rope_fraction
from slmjax.models.families.switches import BIASES, LAYER_NORM, PLAIN

GPT2_SPELLINGS = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
GPT2_SPELLINGS |= {"n_positions": "max_position_embeddings", "n_inner": "intermediate_size"}
NEO_SPELLINGS = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
MPT_SPELLINGS = {"d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}
MPT_SPELLINGS |= {"max_seq_len": "max_position_embeddings"}


def _spelled(values: Values, spellings: Mapping[str, str], usual: Values) -> Values:
    """`spelled`, with a feed-forward width of 4 x hidden_size where none is given."""
    values = hf.spelled(values, spellings, layer_norm_epsilon=1e-5, **usual)
    values["intermediate_size"] = values["intermediate_size"] or 4 * hf.integer(values, "hidden_size")
    return values


def _common_to(config: ModelConfig, spellings: Mapping[str, str]) -> Values:
    values = {**hf.sizes_to(config), "layer_norm_epsilon": config.norm_eps}
    if config.ffn_dim == 4 * config.embed_dim:
        values["intermediate_size"] = None
    return hf.spelled_back(values, spellings)


def _gelu_new(config: ModelConfig) -> str:
    return "gelu_new" if config.activation == "gelu_tanh" else hf.activation_name(config)


def _gpt2_from(values: Values, *, activation: str = "gelu_new") -> ModelConfig:
    usual = {"activation_function": activation, "tie_word_embeddings": True, "scale_attn_weights": True}
    values = _spelled(values, GPT2_SPELLINGS, {**usual, **hf.shape(50257, 768, 0, 12, 12, 1024)})
    # reorder_and_upcast_attn is about rounding alone: our scores are float32 always.
    hf.require(values, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return ModelConfig(
        **hf.sizes(values),
        **PLAIN,
        position="learned",
        activation=hf.activation(values, "activation_function"),
        norm_eps=hf.number(values, "layer_norm_epsilon"),
        attention_scale=None if hf.flag(values, "scale_attn_weights") else 1.0,
    )


def _gpt2_to(config: ModelConfig) -> Values:
    return {
        **_common_to(config, GPT2_SPELLINGS),
        "activation_function": hf.activation_name(config),
        "scale_attn_weights": config.attention_scale is None,
    }


def _gpt2_entries(config: ModelConfig, *, is_conv1d: bool = True) -> list[Entry]:
    """Every tensor of GPT-2, or with is_conv1d=False of GPT-BigCode, which has the same names."""
    entries = ends(config, "transformer.wte", "transformer.ln_f")
    entries.append(as_is("transformer.wpe.weight", Leaf("position_embedder/embedding")))
    for i in range(config.num_layers):
        layer, leaf = f"transformer.h.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.ln_1", "attention_norm", leaf)
        entries += norm(config, f"{layer}.ln_2", "ffn_norm", leaf)
        if is_conv1d:
            entries += fused_qkv(config, i, f"{layer}.attn.c_attn", is_transposed=False)
        else:  # q, k and v of each head together, but with one key/value head that is all q, k, v
            entries += grouped_qkv(config, i, f"{layer}.attn.c_attn")
        for theirs, ours in (("attn.c_proj", "attention/o"), ("mlp.c_fc", "feedforward/up")):
            entries += product(config, f"{layer}.{theirs}", f"{ours}_proj", leaf, is_transposed=not is_conv1d)
        down = "feedforward/down_proj"
        entries += product(config, f"{layer}.mlp.c_proj", down, leaf, is_transposed=not is_conv1d)
    return entries


def _gpt_bigcode_from(values: Values) -> ModelConfig:
    config = _gpt2_from(values, activation="gelu_pytorch_tanh")
    one = hf.flag(hf.with_defaults(values, {"multi_query": True}), "multi_query")
    return dataclasses.replace(config, num_kv_heads=1) if one else config


def _gpt_bigcode_to(config: ModelConfig) -> Values:
    return {**_gpt2_to(config), "multi_query": config.num_kv_heads == 1}


def _gpt_neo_from(values: Values) -> ModelConfig:
    usual = {"activation_function": "gelu_new", "tie_word_embeddings": True, "window_size": 256}
    values = _spelled(values, NEO_SPELLINGS, {**usual, **hf.shape(50257, 2048, 0, 24, 16, 2048)})
    common = hf.sizes(values)
    kinds = _attention_kinds(values, common["num_layers"])
    local: Values = {"layer_pattern": hf.shortest_period(kinds), "window": hf.integer(values, "window_size")}
    return ModelConfig(
        **common,
        **(PLAIN | {"qkv_bias": False}),
        **(local if "local" in kinds else {}),
        position="learned",
        activation=hf.activation(values, "activation_function"),
        norm_eps=hf.number(values, "layer_norm_epsilon"),
        attention_scale=1.0,
    )


def _attention_kinds(values: Values, layers: int) -> tuple[str, ...]:
    """Each layer's kind, "global" or "local": attention_types lists pairs, [kinds, how often they repeat]."""
    listed = values.get("attention_types") or [[["global", "local"], 12]]
    kinds: list[str] = []
    try:
        for names, repeats in listed:
            if type(repeats) is not int or not set(names) <= {"global", "local"}:
                raise ValueError
            if len(kinds) + len(names) * repeats > hf.MAX_LAYERS:
                raise ValueError
            kinds += list(names) * repeats
    except (TypeError, ValueError):
        raise UserError(
            f"The config.json: attention_types is {shown(listed)}; it must list pairs of kinds ('global', 'local') and "
            "how often they repeat."
        ) from None
    if len(kinds) != layers:
        raise UserError(f"The config.json: attention_types gives {len(kinds)} layers; num_layers says {layers}.")
    return tuple(kinds)


def _gpt_neo_to(config: ModelConfig) -> Values:
    kinds = ["global" if spec.window is None else "local" for spec in config.layers]
    period = list(hf.shortest_period(kinds))
    repeats, rest = divmod(len(kinds), len(period))
    return {
        **_common_to(config, NEO_SPELLINGS),
        "activation_function": _gelu_new(config),
        "attention_types": [[kinds, 1]] if rest else [[period, repeats]],
        "attention_layers": kinds,
        "window_size": config.window or 256,
    }


def _gpt_neo_entries(config: ModelConfig) -> list[Entry]:
    products = {f"attn.attention.{x}_proj": f"attention/{x}_proj" for x in "qkv"}
    products |= {"attn.attention.out_proj": "attention/o_proj"}
    products |= {"mlp.c_fc": "feedforward/up_proj", "mlp.c_proj": "feedforward/down_proj"}
    entries = ends(config, "transformer.wte", "transformer.ln_f")
    entries.append(as_is("transformer.wpe.weight", Leaf("position_embedder/embedding")))
    norms = {"ln_1": "attention_norm", "ln_2": "ffn_norm"}
    return entries + plain_layers(config, products, norms, "transformer.h")


def _gptj_from(values: Values) -> ModelConfig:
    usual = {"activation_function": "gelu_new", "tie_word_embeddings": False}
    if "rotary_dim" in values and values["rotary_dim"] is None:
        raise UserError("The config.json: rotary_dim is null, which no implementation of GPT-J can run: give a number.")
    values = _spelled(values, GPT2_SPELLINGS, {"rotary_dim": 64, **usual, **hf.shape(50400, 4096, 0, 28, 16, 2048)})
    common = hf.sizes(values)
    head_dim = common["embed_dim"] // max(common["num_heads"], 1)
    return ModelConfig(
        **common,
        **LAYER_NORM,
        gated=False,
        ffn_bias=True,
        head_bias=True,
        rope_fraction=rope_fraction(hf.integer(values, "rotary_dim"), head_dim),
        activation=hf.activation(values, "activation_function"),
        norm_eps=hf.number(values, "layer_norm_epsilon"),
        parallel_residual=True,
        shared_norm=True,
    )


def _gptj_to(config: ModelConfig) -> Values:
    return {
        **_common_to(config, GPT2_SPELLINGS),
        "activation_function": _gelu_new(config),
        "rotary": True,
        "rotary_dim": config.rotary_dim,
    }


def _gptj_entries(config: ModelConfig) -> list[Entry]:
    products = {f"attn.{x}_proj": f"attention/{x}_proj" for x in "qkv"} | {"attn.out_proj": "attention/o_proj"}
    products |= {"mlp.fc_in": "feedforward/up_proj", "mlp.fc_out": "feedforward/down_proj"}
    layers = plain_layers(config, products, {"ln_1": "attention_norm"}, "transformer.h")
    return interleaved(config, ends(config, "transformer.wte", "transformer.ln_f") + layers)


def _starcoder2_from(values: Values) -> ModelConfig:
    usual = hf.shape(49152, 3072, 12288, 30, 24, 4096) | {"num_key_value_heads": 2, "initializer_range": 0.018042}
    usual |= {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "tie_word_embeddings": True, "use_bias": True}
    values = hf.spelled(values, {}, **usual)
    window: Values = {"window": hf.optional_integer(values, "sliding_window"), "layer_pattern": ("local",)}
    return ModelConfig(
        **hf.sizes(values),
        **(PLAIN | dict.fromkeys(BIASES, hf.flag(values, "use_bias"))),
        **hf.rope_from(values).fields(),
        **({} if window["window"] is None else window),
        activation=hf.activation(values, "hidden_act"),
        norm_eps=hf.number(values, "norm_epsilon"),
    )


def _starcoder2_to(config: ModelConfig) -> Values:
    return {
        **hf.sizes_to(config),
        **hf.rope_to(config),
        "hidden_act": hf.activation_name(config),
        "norm_epsilon": config.norm_eps,
        "use_bias": config.qkv_bias,
        "sliding_window": config.window if "local" in config.layer_pattern else None,
    }


def _starcoder2_entries(config: ModelConfig) -> list[Entry]:
    products = {f"self_attn.{x}_proj": f"attention/{x}_proj" for x in "qkvo"}
    products |= {"mlp.c_fc": "feedforward/up_proj", "mlp.c_proj": "feedforward/down_proj"}
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    return ends(config, "model.embed_tokens", "model.norm") + plain_layers(config, products, norms)


def _mpt_from(values: Values) -> ModelConfig:
    usual = {"expansion_ratio": 4, "tie_word_embeddings": True, **hf.shape(50368, 2048, 0, 24, 16, 2048)}
    values = _spelled(values, MPT_SPELLINGS, usual)
    attention = {"alibi": True, "alibi_bias_max": 8, **hf.mapping(values, "attn_config")}
    # What the network of transformers does whatever is written here, and MosaicML's own does otherwise.
    hf.require(values, expansion_ratio=4, no_bias=True, logit_scale=None)
    hf.require(attention, attn_type="multihead_attention", alibi=True, qk_ln=False, prefix_lm=False)
    if values.get("norm_type") not in (None, "low_precision_layernorm", "layernorm"):
        raise UserError(f"The config.json: norm_type is {shown(values['norm_type'])}; only LayerNorm can be run here.")
    return ModelConfig(
        **hf.sizes(values),
        norm="layer",
        gated=False,
        activation="gelu",
        position="alibi",
        norm_eps=hf.number(values, "layer_norm_epsilon"),
        attention_scale=hf.optional_number(attention, "softmax_scale"),
        clip_qkv=hf.optional_number(attention, "clip_qkv") or None,
        alibi_max_bias=hf.number(attention, "alibi_bias_max"),  # transformers has 8 whatever is written
    )


def _mpt_to(config: ModelConfig) -> Values:
    written = _common_to(config, MPT_SPELLINGS)
    del written["intermediate_size"]
    most = config.alibi_max_bias
    attention = {
        "attn_type": "multihead_attention",
        "clip_qkv": config.clip_qkv,
        "softmax_scale": config.attention_scale,
        "prefix_lm": False,
        "qk_ln": False,
        "alibi": True,
        "alibi_bias_max": int(most) if most == int(most) else most,
    }
    fixed = {"expansion_ratio": 4, "no_bias": True, "norm_type": "low_precision_layernorm", "logit_scale": None}
    # Published configs say learned_pos_emb; where there is ALiBi no implementation has such a table.
    return {**written, **fixed, "learned_pos_emb": True, "attn_config": attention}


def _mpt_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "transformer.wte", "transformer.norm_f")
    for i in range(config.num_layers):
        layer, leaf = f"transformer.blocks.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.norm_1", "attention_norm", leaf)
        entries += norm(config, f"{layer}.norm_2", "ffn_norm", leaf)
        entries += fused_qkv(config, i, f"{layer}.attn.Wqkv")
        entries += product(config, f"{layer}.attn.out_proj", "attention/o_proj", leaf)
        entries += product(config, f"{layer}.ffn.up_proj", "feedforward/up_proj", leaf)
        entries += product(config, f"{layer}.ffn.down_proj", "feedforward/down_proj", leaf)
    return entries


# Files of the bare network lack the prefix of the one with a head; older ones hold the mask too.
_BARE = ((r"^((wte|wpe|h|ln_f)\..*)$", r"transformer.\1"),)
_MASKS = (r"(transformer\.)?h\.\d+\.attn\.(attention\.)?(bias|masked_bias)",)

FAMILIES = (
    HuggingFaceFamily("gpt2", "GPT2LMHeadModel", _gpt2_from, _gpt2_to, _gpt2_entries, _MASKS, _BARE),
    HuggingFaceFamily(
        *("gpt_bigcode", "GPTBigCodeForCausalLM", _gpt_bigcode_from, _gpt_bigcode_to),
        *(partial(_gpt2_entries, is_conv1d=False), _MASKS, _BARE),
    ),
    HuggingFaceFamily("gpt_neo", "GPTNeoForCausalLM", _gpt_neo_from, _gpt_neo_to, _gpt_neo_entries, _MASKS, _BARE),
    HuggingFaceFamily("gptj", "GPTJForCausalLM", _gptj_from, _gptj_to, _gptj_entries, _MASKS, _BARE),
    HuggingFaceFamily("starcoder2", "Starcoder2ForCausalLM", _starcoder2_from, _starcoder2_to, _starcoder2_entries),
    HuggingFaceFamily(
        *("mpt", "MptForCausalLM", _mpt_from, _mpt_to, _mpt_entries),
        renames=((r"^((wte|blocks|norm_f)\..*)$", r"transformer.\1"),),
    ),
)
