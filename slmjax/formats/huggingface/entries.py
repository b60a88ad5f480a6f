"""What families share: switches, products with or without bias, norms, embedding and head, fused projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from slmjax.formats.weight_map import Arrays, Entry, Leaf, as_is, concatenated, layer_leaf, transposed
from slmjax.models.config import ModelConfig

LeafOf = Callable[[str], Leaf]  # of one layer, or `Leaf` itself outside of the layers

LAYER_NORM: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated": False}
BIASES: dict[str, Any] = {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}

# The names of a block since LLaMA, within "model.layers.{i}.".
LLAMA_ATTENTION = {f"self_attn.{x}_proj": f"attention/{x}_proj" for x in "qkvo"}
LLAMA_GATED = {f"mlp.{x}_proj": f"feedforward/{x}_proj" for x in ("gate", "up", "down")}
LLAMA_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}


def has_bias(config: ModelConfig, ours: str) -> bool:
    """Whether the product at `ours` ("attention/q_proj") adds a bias."""
    if ours.startswith("feedforward/"):
        return config.ffn_bias
    return config.attention_output_bias if ours == "attention/o_proj" else config.qkv_bias


def product(config: ModelConfig, name: str, ours: str, leaf: LeafOf, *, is_transposed: bool = True) -> list[Entry]:
    """A torch Linear, or with is_transposed=False a kernel of [in, out]."""
    weight = (transposed if is_transposed else as_is)(f"{name}.weight", leaf(f"{ours}/kernel"))
    return [weight] + ([as_is(f"{name}.bias", leaf(f"{ours}/bias"))] if has_bias(config, ours) else [])


def norm(config: ModelConfig, name: str, ours: str, leaf: LeafOf = Leaf) -> list[Entry]:
    """Gain and bias of one of the network's norms, as many of the two as it has."""
    entries = [as_is(f"{name}.weight", leaf(f"{ours}/scale"))] if config.norm_scale else []
    return entries + ([as_is(f"{name}.bias", leaf(f"{ours}/bias"))] if config.norm_bias else [])


def ends(config: ModelConfig, table: str, final_norm: str, head: str = "lm_head") -> list[Entry]:
    """Token table, final norm and output head, each where the network has it of its own."""
    entries = [as_is(f"{table}.weight", Leaf("embedder/embedding"))]
    entries += norm(config, final_norm, "final_norm") if config.final_norm else []
    entries += [] if config.tie_embeddings else [transposed(f"{head}.weight", Leaf("lm_head/kernel"))]
    return entries + ([as_is(f"{head}.bias", Leaf("lm_head/bias"))] if config.head_bias else [])


def plain_layers(
    config: ModelConfig, products: Mapping[str, str], norms: Mapping[str, str], prefix: str = "model.layers"
) -> list[Entry]:
    """Layers in which every product is a tensor of its own; maps from their names to ours."""
    entries = []
    for i in range(config.num_layers):
        leaf = partial(layer_leaf, config, i)
        for theirs, ours in products.items():
            entries += product(config, f"{prefix}.{i}.{theirs}", ours, leaf)
        for theirs, ours in norms.items():
            entries += norm(config, f"{prefix}.{i}.{theirs}", ours, leaf)
    return entries


def fused_qkv(config: ModelConfig, layer: int, name: str, *, is_transposed: bool = True) -> list[Entry]:
    """All queries, then all keys, then all values in one tensor."""
    kernels, biases = _qkv(config, layer)
    spec = config.layers[layer]
    sizes = [heads * config.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
    weight = concatenated(f"{name}.weight", kernels, sizes, transpose=is_transposed)
    return [weight] + ([concatenated(f"{name}.bias", biases, sizes, transpose=False)] if config.qkv_bias else [])


def grouped_qkv(config: ModelConfig, layer: int, name: str) -> list[Entry]:
    """[G, H / G + 2, K]: each key/value head behind the queries that it serves.

    With G = H that is [H, 3, K] (BLOOM, GPT-NeoX, Falcon-RW), with G = 1 multi-query attention (Falcon-7B).
    """
    spec = config.layers[layer]
    G, R, K = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, config.head_dim

    def split(x: np.ndarray) -> Arrays:
        groups = x.reshape(G, R + 2, K, *x.shape[1:])
        return [part.reshape(-1, *x.shape[1:]).T for part in (groups[:, :R], groups[:, R], groups[:, R + 1])]

    def join(parts: Arrays) -> np.ndarray:
        rows = [part.T for part in parts]
        groups = [row.reshape(G, -1, K, *row.shape[1:]) for row in rows]
        return np.concatenate(groups, axis=1).reshape(-1, *rows[0].shape[1:])

    kernels, biases = _qkv(config, layer)
    weight = Entry(f"{name}.weight", kernels, split, join)
    return [weight] + ([Entry(f"{name}.bias", biases, split, join)] if config.qkv_bias else [])


def _qkv(config: ModelConfig, layer: int) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...]]:
    kernels, biases = (
        tuple(layer_leaf(config, layer, f"attention/{x}_proj/{kind}") for x in "qkv") for kind in ("kernel", "bias")
    )
    return kernels, biases
