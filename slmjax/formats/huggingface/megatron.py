"""Networks with Megatron's products, queries, keys and values fused head by head: BLOOM, Falcon, GPT-NeoX (Pythia)."""

from __future__ import annotations

from functools import partial
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.entries import ends, grouped_qkv, norm, product
from slmjax.formats.huggingface.config_values import (
    Values,
    activation,
    activation_name,
    flag,
    integer,
    number,
    optional_integer,
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
from slmjax.formats.weight_map import Entry, layer_leaf
from slmjax.models.config import ModelConfig
from slmjax.models.families.switches import BIASES, PLAIN

BLOOM_SPELLINGS = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
BLOOM_SPELLINGS |= {"seq_length": "max_position_embeddings"}


def _bloom_from(values: Values) -> ModelConfig:
    usual = {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, **shape(250880, 64, 0, 2, 8, 2048)}
    values = spelled(values, BLOOM_SPELLINGS, **usual)
    values["intermediate_size"] = 4 * integer(values, "hidden_size")
    require(values, apply_residual_connection_post_layernorm=False)
    return ModelConfig(
        **sizes(values),
        **PLAIN,
        position="alibi",
        activation="gelu_tanh",
        norm_eps=number(values, "layer_norm_epsilon"),
        embedding_norm=True,
    )


def _bloom_to(config: ModelConfig) -> Values:
    own = {**BLOOM_SPELLINGS}
    del own["n_embed"]  # an older spelling than hidden_size
    written = spelled_back(sizes_to(config), own)
    del written["intermediate_size"]
    return {**written, "layer_norm_epsilon": config.norm_eps}


def _megatron_layer(config: ModelConfig, i: int, layer: str, attention: str) -> list[Entry]:
    """The products of BLOOM, Falcon and GPT-NeoX, which are Megatron's."""
    leaf = partial(layer_leaf, config, i)
    entries = grouped_qkv(config, i, f"{layer}.{attention}.query_key_value")
    entries += product(config, f"{layer}.{attention}.dense", "attention/o_proj", leaf)
    entries += product(config, f"{layer}.mlp.dense_h_to_4h", "feedforward/up_proj", leaf)
    return entries + product(config, f"{layer}.mlp.dense_4h_to_h", "feedforward/down_proj", leaf)


def _bloom_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "transformer.word_embeddings", "transformer.ln_f")
    entries += norm(config, "transformer.word_embeddings_layernorm", "embed_norm")
    for i in range(config.num_layers):
        layer, leaf = f"transformer.h.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.input_layernorm", "attention_norm", leaf)
        entries += norm(config, f"{layer}.post_attention_layernorm", "ffn_norm", leaf)
        entries += _megatron_layer(config, i, layer, "self_attention")
    return entries


def _falcon_from(values: Values) -> ModelConfig:
    values = spelled(
        values,
        {"ffn_hidden_size": "intermediate_size", "n_embed": "hidden_size"},
        tie_word_embeddings=True,
        multi_query=True,
        parallel_attn=True,
        activation="gelu",
        layer_norm_epsilon=1e-5,
        **shape(65024, 4544, 0, 32, 71, 2048),
    )
    values["intermediate_size"] = values["intermediate_size"] or 4 * integer(values, "hidden_size")
    new = flag(values, "new_decoder_architecture")
    heads = integer(values, "num_attention_heads")
    grouped = optional_integer(values, "num_kv_heads") or heads
    kv_heads = grouped if new else 1 if flag(values, "multi_query") else heads
    two_norms = new and (optional_integer(values, "num_ln_in_parallel_attn") or 2) == 2
    parallel = new or flag(values, "parallel_attn")
    position: dict[str, Any] = {"position": "alibi", "alibi_scaled": True}
    if not flag(values, "alibi"):
        position = rope_from(values).fields()
    return ModelConfig(
        **(sizes(values) | {"num_kv_heads": kv_heads}),
        **(PLAIN | dict.fromkeys(BIASES, flag(values, "bias"))),
        **position,
        activation=activation(values, "activation"),
        norm_eps=number(values, "layer_norm_epsilon"),
        parallel_residual=parallel,
        shared_norm=parallel and not two_norms,
    )


def _falcon_to(config: ModelConfig) -> Values:
    multi_query = config.num_kv_heads == 1
    old = config.num_kv_heads in (1, config.num_heads) and (config.shared_norm or not config.parallel_residual)
    return {
        **spelled_back(sizes_to(config), {"ffn_hidden_size": "intermediate_size"}),
        **({} if config.position == "alibi" else rope_to(config)),
        "alibi": config.position == "alibi",
        "bias": config.qkv_bias,
        "activation": activation_name(config),
        "layer_norm_epsilon": config.norm_eps,
        "num_kv_heads": config.num_kv_heads,
        "multi_query": multi_query,
        "parallel_attn": config.parallel_residual,
        "new_decoder_architecture": not old,
        "num_ln_in_parallel_attn": 1 if old or config.shared_norm else 2,
    }


def _falcon_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "transformer.word_embeddings", "transformer.ln_f")
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    if config.parallel_residual:
        norms = {"ln_attn": "attention_norm", "ln_mlp": "ffn_norm"}
    if config.shared_norm:
        norms = {"input_layernorm": "attention_norm"}
    for i in range(config.num_layers):
        layer = f"transformer.h.{i}"
        for theirs, ours in norms.items():
            entries += norm(config, f"{layer}.{theirs}", ours, partial(layer_leaf, config, i))
        entries += _megatron_layer(config, i, layer, "self_attention")
    return entries


def _gpt_neox_from(values: Values) -> ModelConfig:
    values = spelled(
        values,
        {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        attention_bias=True,
        **shape(50432, 6144, 24576, 44, 64, 2048),
    )
    attention_bias = flag(values, "attention_bias")
    return ModelConfig(
        **sizes(values),
        **(PLAIN | {"qkv_bias": attention_bias, "attention_output_bias": attention_bias}),
        **rope_from(values, fraction=0.25).fields(),
        activation=activation(values, "hidden_act"),
        norm_eps=number(values, "layer_norm_eps"),
        parallel_residual=flag(values, "use_parallel_residual"),
    )


def _gpt_neox_to(config: ModelConfig) -> Values:
    if config.shared_norm:
        raise UserError("model.shared_norm=True is beyond GPT-NeoX, whose parallel layers have two norms.")
    return {
        **spelled_back(sizes_to(config), {}),
        **rope_to(config, partial=True),
        "rotary_pct": config.rope_fraction,
        "rotary_emb_base": config.rope_theta,
        "hidden_act": activation_name(config),
        "layer_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
    }


def _gpt_neox_entries(config: ModelConfig) -> list[Entry]:
    entries = ends(config, "gpt_neox.embed_in", "gpt_neox.final_layer_norm", head="embed_out")
    for i in range(config.num_layers):
        layer, leaf = f"gpt_neox.layers.{i}", partial(layer_leaf, config, i)
        entries += norm(config, f"{layer}.input_layernorm", "attention_norm", leaf)
        entries += norm(config, f"{layer}.post_attention_layernorm", "ffn_norm", leaf)
        entries += _megatron_layer(config, i, layer, "attention")
    return entries


# Files of the bare network lack the prefix of the one with a head.
UNPREFIXED = ((r"^((word_embeddings|word_embeddings_layernorm|h|ln_f)\..*)$", r"transformer.\1"),)

FAMILIES = (
    HuggingFaceFamily("bloom", "BloomForCausalLM", _bloom_from, _bloom_to, _bloom_entries, renames=UNPREFIXED),
    HuggingFaceFamily("falcon", "FalconForCausalLM", _falcon_from, _falcon_to, _falcon_entries, renames=UNPREFIXED),
    HuggingFaceFamily(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _gpt_neox_from,
        _gpt_neox_to,
        _gpt_neox_entries,
        ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
        renames=((r"^lm_head\.(.*)$", r"embed_out.\1"),),
    ),
)
