"""LLaMA's tensor names in transformers, which its heirs kept, onto our arrays."""

from __future__ import annotations

from functools import partial

from slmjax.formats.entries import ends, fused_gate_up, fused_qkv, norm, product, qk_norms
from slmjax.formats.weight_map import Entry, layer_leaf
from slmjax.models.config import ModelConfig

# Tables of older releases that are computed and not learned.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def llama_entries(config: ModelConfig, *, fused: bool = False) -> list[Entry]:
    """Every tensor of a network of LLaMA's kind. fused: Phi-3's one product for q, k and v, and one for gate and up."""
    table, *rest = ends(config, "model.embed_tokens", "model.norm")
    return [table, *(entry for i in range(config.num_layers) for entry in _layer(config, i, fused)), *rest]


def _layer(config: ModelConfig, i: int, fused: bool) -> list[Entry]:
    at, leaf = f"model.layers.{i}", partial(layer_leaf, config, i)
    entries = [entry for name, ours in _norms(config).items() for entry in norm(config, f"{at}.{name}", ours, leaf)]
    entries += qk_norms(config, f"{at}.self_attn.", leaf)
    if fused:
        entries += fused_qkv(config, i, f"{at}.self_attn.qkv_proj") + fused_gate_up(config, i, f"{at}.mlp.gate_up_proj")
    else:
        for x in "qkv":
            entries += product(config, f"{at}.self_attn.{x}_proj", f"attention/{x}_proj", leaf)
        for x in ("gate", "up") if config.gated else ("up",):
            entries += product(config, f"{at}.mlp.{x}_proj", f"feedforward/{x}_proj", leaf)
    entries += product(config, f"{at}.self_attn.o_proj", "attention/o_proj", leaf)
    return entries + product(config, f"{at}.mlp.down_proj", "feedforward/down_proj", leaf)


def _norms(config: ModelConfig) -> dict[str, str]:
    """transformers' name of each norm of a block, and ours."""
    if config.norm_placement == "output":
        return {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffn_norm"}
    if config.norm_placement == "sandwich":
        return {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffn_norm",
        }
    before = {"input_layernorm": "attention_norm"}
    return before if config.shared_norm else before | {"post_attention_layernorm": "ffn_norm"}
