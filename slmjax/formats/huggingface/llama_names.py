"""LLaMA's tensor names in transformers, which its heirs kept, onto our arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from slmjax.formats.entries import ends, fused_gate_up, fused_qkv, norm, product, qk_norms
from slmjax.formats.weight_map import Entry, layer_leaf
from slmjax.models.config import ModelConfig

# Tables of older releases that are computed and not learned.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def llama_entries(
    config: ModelConfig, *, fused: bool = False, fused_gate: bool = False, norms: Mapping[str, str] | None = None
) -> list[Entry]:
    """Every tensor of a network of LLaMA's kind.

    fused: Phi-3's one product for q, k and v, and one for gate and up; fused_gate: the latter alone. norms: name of
    each norm of a block in the file -> ours; None: LLaMA's, OLMo-2's or Gemma's by the places of the norms.
    """
    table, *rest = ends(config, "model.embed_tokens", "model.norm")
    names = _norms(config) if norms is None else norms
    layers = (_layer(config, i, names, fused, fused or fused_gate) for i in range(config.num_layers))
    return [table, *(entry for layer in layers for entry in layer), *rest]


def _layer(config: ModelConfig, i: int, norms: Mapping[str, str], fused: bool, fused_gate: bool) -> list[Entry]:
    at, leaf = f"model.layers.{i}", partial(layer_leaf, config, i)
    entries = [entry for name, ours in norms.items() for entry in norm(config, f"{at}.{name}", ours, leaf)]
    entries += qk_norms(config, f"{at}.self_attn.", leaf)
    if fused:
        entries += fused_qkv(config, i, f"{at}.self_attn.qkv_proj")
    else:
        for x in "qkv":
            entries += product(config, f"{at}.self_attn.{x}_proj", f"attention/{x}_proj", leaf)
    if fused_gate:
        entries += fused_gate_up(config, i, f"{at}.mlp.gate_up_proj")
    else:
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
