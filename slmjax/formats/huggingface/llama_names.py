"""LLaMA's tensor names in transformers, which its heirs kept, onto our arrays."""

from __future__ import annotations

from slmjax.formats.weight_map import Entry, Leaf, as_is, concatenated, layer_leaf, transposed
from slmjax.models.config import ModelConfig

# Tables of older releases that are computed and not learned.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def llama_entries(config: ModelConfig, *, fused: bool = False) -> list[Entry]:
    """Every tensor of a network of LLaMA's kind. fused: Phi-3's one product for q, k and v, and one for gate and up."""
    entries = [as_is("model.embed_tokens.weight", Leaf("embedder/embedding"))]
    for i in range(config.num_layers):
        entries += _layer(config, i, fused)
    entries.append(as_is("model.norm.weight", Leaf("final_norm/scale")))
    return entries if config.tie_embeddings else [*entries, transposed("lm_head.weight", Leaf("lm_head/kernel"))]


def _linear(name: str, config: ModelConfig, layer: int, ours: str, bias: bool) -> list[Entry]:
    entries = [transposed(f"{name}.weight", layer_leaf(config, layer, f"{ours}/kernel"))]
    return entries + ([as_is(f"{name}.bias", layer_leaf(config, layer, f"{ours}/bias"))] if bias else [])


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
    return {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}


def _layer(config: ModelConfig, i: int, fused: bool) -> list[Entry]:
    at, c = f"model.layers.{i}", config
    entries = [as_is(f"{at}.{name}.weight", layer_leaf(c, i, f"{ours}/scale")) for name, ours in _norms(c).items()]
    if c.qk_norm != "none":
        for x in "qk":
            entries.append(as_is(f"{at}.self_attn.{x}_norm.weight", layer_leaf(c, i, f"attention/{x}_norm/scale")))
    if fused:
        spec = c.layers[i]
        qkv = [layer_leaf(c, i, f"attention/{x}_proj/kernel") for x in "qkv"]
        sizes = [heads * c.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        entries.append(concatenated(f"{at}.self_attn.qkv_proj.weight", qkv, sizes, transpose=True))
        gate_up = [layer_leaf(c, i, f"feedforward/{x}_proj/kernel") for x in ("gate", "up")]
        entries.append(concatenated(f"{at}.mlp.gate_up_proj.weight", gate_up, [spec.ffn_dim] * 2, transpose=True))
    else:
        for x in "qkv":
            entries += _linear(f"{at}.self_attn.{x}_proj", c, i, f"attention/{x}_proj", c.qkv_bias)
        for x in ("gate", "up"):
            entries += _linear(f"{at}.mlp.{x}_proj", c, i, f"feedforward/{x}_proj", c.ffn_bias)
    entries += _linear(f"{at}.self_attn.o_proj", c, i, "attention/o_proj", c.attention_output_bias)
    return entries + _linear(f"{at}.mlp.down_proj", c, i, "feedforward/down_proj", c.ffn_bias)
