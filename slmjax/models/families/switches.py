"""The switches that several families share, and the notation for the sizes of a family."""

from __future__ import annotations

from typing import Any

Switches = dict[str, Any]  # fields of `ModelConfig`
Families = dict[str, tuple[Switches, dict[str, Switches]]]  # family -> (what it shares, {model: what its size adds})

LAYER_NORM: Switches = {"norm": "layer", "norm_bias": True}
BIASES: Switches = {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}
PLAIN: Switches = {**LAYER_NORM, **BIASES, "gated": False}  # the networks before LLaMA


def size(
    *, num_layers: int, embed_dim: int, num_heads: int, ffn_dim: int = 0, num_kv_heads: int | None = None, **rest: Any
) -> Switches:
    """One size. ffn_dim: 4 x embed_dim where it is left out."""
    shape = {"num_layers": num_layers, "embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    return {**shape, "ffn_dim": ffn_dim or 4 * embed_dim, **rest}
