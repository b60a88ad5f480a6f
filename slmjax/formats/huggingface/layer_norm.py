"""Networks with LayerNorm: learned positions (GPT-2, OPT), rotary ones (Phi, StableLM, OLMo-1, Nemotron)."""

from __future__ import annotations

from functools import partial

from slmjax.formats.entries import ends, fused_qkv, norm, plain_layers, product
from slmjax.formats.huggingface.config_values import (
    Values,
    activation,
    activation_name,
    flag,
    integer,
    number,
    optional_integer,
    optional_number,
    require,
    rope_from,
    rope_to,
    shape,
    sizes,
    sizes_to,
    spelled,
    spelled_back,
)
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.llama_names import llama_entries
from slmjax.formats.weight_map import Entry, Leaf, as_is, layer_leaf, transposed
from slmjax.models.config import ModelConfig
from slmjax.models.families.switches import BIASES, LAYER_NORM, PLAIN

GPT2_SPELLINGS = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
GPT2_SPELLINGS |= {"n_positions": "max_position_embeddings", "n_inner": "intermediate_size"}


def _gpt2_from(values: Values) -> ModelConfig:
    usual = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    usual |= {"scale_attn_weights": True}
    values = spelled(values, GPT2_SPELLINGS, **usual, **shape(50257, 768, 0, 12, 12, 1024))
    values["intermediate_size"] = values["intermediate_size"] or 4 * integer(values, "hidden_size")
    # reorder_and_upcast_attn is about rounding alone: our scores are float32 always.
    require(values, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return ModelConfig(
        **sizes(values),
        **PLAIN,
        position="learned",
        activation=activation(values, "activation_function"),
        norm_eps=number(values, "layer_norm_epsilon"),
        attention_scale=None if flag(values, "scale_attn_weights") else 1.0,
    )


def _gpt2_to(config: ModelConfig) -> Values:
    return {
        **spelled_back(sizes_to(config), GPT2_SPELLINGS),
        "activation_function": activation_name(config),
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.attention_scale is None,
    }


def _gpt2_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "transformer.wte", "transformer.ln_f")
    entries.append(as_is("transformer.wpe.weight", Leaf("position_embedder/embedding")))
    for i in range(config.num_layers):
        layer, leaf = f"transformer.h.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.ln_1", "attention_norm", leaf)
        entries += norm(config, f"{layer}.ln_2", "ffn_norm", leaf)
        entries += fused_qkv(config, i, f"{layer}.attn.c_attn", is_transposed=False)
        for theirs, ours in (("attn.c_proj", "attention/o"), ("mlp.c_fc", "feedforward/up")):
            entries += product(config, f"{layer}.{theirs}", f"{ours}_proj", leaf, is_transposed=False)
        entries += product(config, f"{layer}.mlp.c_proj", "feedforward/down_proj", leaf, is_transposed=False)
    return entries


def _opt_from(values: Values) -> ModelConfig:
    values = spelled(
        values,
        {"ffn_dim": "intermediate_size", "init_std": "initializer_range"},
        activation_function="relu",
        tie_word_embeddings=True,
        do_layer_norm_before=True,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        **shape(50272, 768, 3072, 12, 12, 2048),
    )
    # Galactica's configs carry two switches of its training code; no implementation of OPT has them.
    require(values, learned_embeddings=True, scale_embeddings=False)
    before, affine = flag(values, "do_layer_norm_before"), flag(values, "layer_norm_elementwise_affine")
    narrow = optional_integer(values, "word_embed_proj_dim")
    biases = dict.fromkeys(BIASES, flag(values, "enable_bias"))
    return ModelConfig(
        **sizes(values),
        **(PLAIN | biases | {"norm_bias": affine, "norm_scale": affine}),
        position="learned",
        position_offset=2,
        activation=activation(values, "activation_function"),
        norm_placement="pre" if before else "post",
        final_norm=before and not flag(values, "_remove_final_layer_norm"),
        embedding_projection_dim=None if narrow == values["hidden_size"] else narrow,
    )


def _opt_to(config: ModelConfig) -> Values:
    before = config.norm_placement == "pre"
    return {
        **spelled_back(sizes_to(config), {"ffn_dim": "intermediate_size", "init_std": "initializer_range"}),
        "activation_function": activation_name(config),
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "word_embed_proj_dim": config.table_dim,
        "enable_bias": config.qkv_bias,
        "layer_norm_elementwise_affine": config.norm_scale,
    }


def _opt_entries(config: ModelConfig) -> list[Entry]:
    decoder = "model.decoder"
    entries = ends(config, f"{decoder}.embed_tokens", f"{decoder}.final_layer_norm")
    entries.append(as_is(f"{decoder}.embed_positions.weight", Leaf("position_embedder/embedding")))
    if config.embedding_projection_dim:
        for way in ("in", "out"):
            entries.append(transposed(f"{decoder}.project_{way}.weight", Leaf(f"embed_{way}_proj/kernel")))
    products = {f"self_attn.{x}_proj": f"attention/{x}_proj" for x in "qkv"}
    products |= {"self_attn.out_proj": "attention/o_proj", "fc1": "feedforward/up_proj", "fc2": "feedforward/down_proj"}
    norms = {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "ffn_norm"}
    return entries + plain_layers(config, products, norms, f"{decoder}.layers")


def _phi_from(values: Values) -> ModelConfig:
    usual = shape(51200, 2048, 8192, 24, 32, 2048)
    values = spelled(values, {}, hidden_act="gelu_new", layer_norm_eps=1e-5, **usual)
    require(values, qk_layernorm=False)  # its LayerNorm has a bias, ours on queries and keys never has
    return ModelConfig(
        **sizes(values),
        **PLAIN,
        **rope_from(values, fraction=0.5).fields(),
        activation=activation(values, "hidden_act"),
        norm_eps=number(values, "layer_norm_eps"),
        parallel_residual=True,
        shared_norm=True,
        head_bias=True,
    )


def _phi_to(config: ModelConfig) -> Values:
    return {
        **sizes_to(config),
        **rope_to(config, partial=True),
        "hidden_act": activation_name(config),
        "layer_norm_eps": config.norm_eps,
        "qk_layernorm": False,
    }


def _phi_entries(config: ModelConfig) -> list[Entry]:
    products = {f"self_attn.{x}_proj": f"attention/{x}_proj" for x in "qkv"} | {"self_attn.dense": "attention/o_proj"}
    products |= {"mlp.fc1": "feedforward/up_proj", "mlp.fc2": "feedforward/down_proj"}
    layers = plain_layers(config, products, {"input_layernorm": "attention_norm"})
    return ends(config, "model.embed_tokens", "model.final_layernorm") + layers


def _stablelm_from(values: Values) -> ModelConfig:
    usual = shape(50304, 2560, 6912, 32, 32, 4096)
    values = spelled(values, {}, hidden_act="silu", layer_norm_eps=1e-5, **usual)
    require(values, qk_layernorm=False)  # a norm of its own for each head, which ours share
    parallel = flag(values, "use_parallel_residual")
    return ModelConfig(
        **sizes(values),
        **LAYER_NORM,
        **rope_from(values, fraction=0.25).fields(),
        qkv_bias=flag(values, "use_qkv_bias"),
        activation=activation(values, "hidden_act"),
        norm_eps=number(values, "layer_norm_eps"),
        parallel_residual=parallel,
        shared_norm=parallel,
    )


def _stablelm_to(config: ModelConfig) -> Values:
    return {
        **sizes_to(config),
        **rope_to(config, partial=True),
        "hidden_act": activation_name(config),
        "layer_norm_eps": config.norm_eps,
        "use_qkv_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
        "qk_layernorm": False,
    }


def _olmo_from(values: Values) -> ModelConfig:
    values = spelled(values, {}, hidden_act="silu", **shape(50304, 4096, 11008, 32, 32, 2048))
    bias = flag(values, "attention_bias")
    return ModelConfig(
        **sizes(values),
        **rope_from(values).fields(),
        norm="layer",
        norm_scale=False,
        qkv_bias=bias,
        attention_output_bias=bias,
        activation=activation(values, "hidden_act"),
        clip_qkv=optional_number(values, "clip_qkv"),
    )


def _olmo_to(config: ModelConfig) -> Values:
    return {
        **sizes_to(config),
        **rope_to(config),
        "hidden_act": activation_name(config),
        "attention_bias": config.qkv_bias,
        "clip_qkv": config.clip_qkv,
    }


def _nemotron_from(values: Values) -> ModelConfig:
    values = spelled(values, {}, hidden_act="relu2", norm_eps=1e-5, **shape(256000, 6144, 24576, 32, 48, 4096))
    bias = flag(values, "attention_bias")
    return ModelConfig(
        **sizes(values),
        **LAYER_NORM,
        **rope_from(values, fraction=0.5).fields(),
        gated=False,
        norm_unit_offset=True,
        norm_eps=number(values, "norm_eps"),
        qkv_bias=bias,
        attention_output_bias=bias,
        ffn_bias=flag(values, "mlp_bias"),
        activation=activation(values, "hidden_act"),
    )


def _nemotron_to(config: ModelConfig) -> Values:
    return {
        **sizes_to(config),
        **rope_to(config, partial=True),
        "hidden_act": activation_name(config),
        "norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ffn_bias,
    }


FAMILIES = (
    HuggingFaceFamily(
        "gpt2",
        "GPT2LMHeadModel",
        _gpt2_from,
        _gpt2_to,
        _gpt2_entries,
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
        renames=((r"^((wte|wpe|h|ln_f)\..*)$", r"transformer.\1"),),
    ),
    HuggingFaceFamily(
        "opt", "OPTForCausalLM", _opt_from, _opt_to, _opt_entries, renames=((r"^(decoder\..*)$", r"model.\1"),)
    ),
    HuggingFaceFamily("phi", "PhiForCausalLM", _phi_from, _phi_to, _phi_entries),
    HuggingFaceFamily("stablelm", "StableLmForCausalLM", _stablelm_from, _stablelm_to, llama_entries),
    HuggingFaceFamily("olmo", "OlmoForCausalLM", _olmo_from, _olmo_to, llama_entries),
    HuggingFaceFamily("nemotron", "NemotronForCausalLM", _nemotron_from, _nemotron_to, llama_entries),
)
