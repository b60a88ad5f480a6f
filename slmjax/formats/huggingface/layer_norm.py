"""Networks with LayerNorm: learned positions (OPT), rotary ones (Phi, StableLM, OLMo-1, Nemotron, Cohere)."""

from __future__ import annotations

from slmjax.errors import UserError
from slmjax.formats.entries import ends, interleaved, plain_layers
from slmjax.formats.huggingface.config_values import (
    MAX_LAYERS,
    Values,
    activation,
    activation_name,
    flag,
    integer,
    layer_types,
    number,
    optional_integer,
    optional_number,
    require,
    rope_from,
    rope_to,
    shape,
    shortest_period,
    sizes,
    sizes_to,
    spelled,
    spelled_back,
    window_fields,
)
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.llama_names import IGNORED, llama_entries
from slmjax.formats.weight_map import Entry, Leaf, as_is, transposed
from slmjax.models.config import ModelConfig
from slmjax.models.families.switches import BIASES, LAYER_NORM, PLAIN


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


def _cohere_fields(values: Values, theta: float) -> Values:
    """The fields that both of Cohere's families spell alike, their keys filled in. theta: the family's default."""
    bias, scale = flag(values, "attention_bias"), number(values, "logit_scale")
    if not scale:
        raise UserError("The config.json: logit_scale is 0, under which every token is as likely as another.")
    return {
        **sizes(values),
        **rope_from(values, theta=theta).fields(),
        "norm": "layer",
        "norm_eps": number(values, "layer_norm_eps"),
        "activation": activation(values, "hidden_act"),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "parallel_residual": True,
        "shared_norm": True,
        "logit_divisor": 1 / scale,
    }


def _cohere_spelled(values: Values) -> Values:
    usual = shape(256000, 8192, 22528, 40, 64, 8192) | {"logit_scale": 0.0625, "tie_word_embeddings": True}
    return spelled(values, {}, hidden_act="silu", layer_norm_eps=1e-5, **usual)


def _cohere_from(values: Values) -> ModelConfig:
    values = _cohere_spelled(values)
    return ModelConfig(**_cohere_fields(values, 500_000.0), qk_norm="heads" if flag(values, "use_qk_norm") else "none")


def _cohere_values(config: ModelConfig) -> Values:
    """The inverse of `_cohere_fields`."""
    # The scale of fewest digits whose inverse is the divisor.
    scales = (float(f"{1 / config.logit_divisor:.{digits}g}") for digits in range(1, 18))
    scale = next((scale for scale in scales if scale and 1 / scale == config.logit_divisor), 1 / config.logit_divisor)
    return {
        **sizes_to(config),
        **rope_to(config),
        "hidden_act": activation_name(config),
        "layer_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "logit_scale": scale,
    }


def _cohere_to(config: ModelConfig) -> Values:
    return {**_cohere_values(config), "use_qk_norm": config.qk_norm == "heads"}


def _cohere2_from(values: Values) -> ModelConfig:
    """Layers with a window rotate, and those without one do not."""
    null = {"sliding_window": None} if "sliding_window" in values and values["sliding_window"] is None else {}
    values = {"sliding_window": 4096, **_cohere_spelled(values), **null}
    common = _cohere_fields(values, 10_000.0)
    every = integer(values, "sliding_window_pattern", most=MAX_LAYERS) if "sliding_window_pattern" in values else 4
    layers = range(1, common["num_layers"] + 1)
    window = window_fields(values, [("sliding_attention" if i % max(every, 1) else "full_attention") for i in layers])
    pattern = shortest_period(window.get("layer_pattern", ("global",)))
    rotates = tuple(kind == "local" for kind in pattern)
    return ModelConfig(**(common | window | {"head_dim": 0, "layer_pattern": pattern}), rope_pattern=rotates)


def _cohere2_to(config: ModelConfig) -> Values:
    types = layer_types(config)
    pattern = types.index("full_attention") + 1 if "full_attention" in types else len(types) + 1
    values = {**_cohere_values(config), "layer_types": types, "sliding_window": config.window}
    del values["head_dim"]  # hidden_size / num_attention_heads, whatever else is written
    return {**values, "sliding_window_pattern": pattern}


def _cohere_entries(config: ModelConfig) -> list[Entry]:
    return interleaved(config, llama_entries(config))


FAMILIES = (
    HuggingFaceFamily(
        "opt", "OPTForCausalLM", _opt_from, _opt_to, _opt_entries, renames=((r"^(decoder\..*)$", r"model.\1"),)
    ),
    HuggingFaceFamily("phi", "PhiForCausalLM", _phi_from, _phi_to, _phi_entries),
    HuggingFaceFamily("stablelm", "StableLmForCausalLM", _stablelm_from, _stablelm_to, llama_entries),
    HuggingFaceFamily("olmo", "OlmoForCausalLM", _olmo_from, _olmo_to, llama_entries),
    HuggingFaceFamily("nemotron", "NemotronForCausalLM", _nemotron_from, _nemotron_to, llama_entries),
    HuggingFaceFamily("cohere", "CohereForCausalLM", _cohere_from, _cohere_to, _cohere_entries, IGNORED),
    HuggingFaceFamily("cohere2", "Cohere2ForCausalLM", _cohere2_from, _cohere2_to, _cohere_entries, IGNORED),
)
