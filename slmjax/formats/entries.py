"""Entries that networks of many formats share: products, norms, embedding and head, fused projections."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from slmjax.formats.weight_map import Arrays, Entry, Leaf, as_is, concatenated, layer_leaf, transposed
from slmjax.models.config import ModelConfig

LeafOf = Callable[[str], Leaf]  # of one layer, or `Leaf` itself outside of the layers


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


def qk_norms(config: ModelConfig, prefix: str, leaf: LeafOf) -> list[Entry]:
    """Gains of the norms of queries and keys, `prefix` + "q_norm.weight" and "k_norm.weight", where there are any."""
    kinds = "" if config.qk_norm == "none" else "qk"
    entries = [as_is(f"{prefix}{x}_norm.weight", leaf(f"attention/{x}_norm/scale")) for x in kinds]
    return [_by_head(entry, config.head_dim) for entry in entries] if config.qk_norm == "heads" else entries


def _by_head(entry: Entry, head_dim: int) -> Entry:
    """A tensor [H, K] of what we hold as [H * K]."""

    def split(x: np.ndarray) -> Arrays:
        if x.ndim != 2 or x.shape[1] != head_dim:
            raise ValueError(f"{entry.name} has shape {list(x.shape)}")
        return [x.reshape(-1)]

    return Entry(entry.name, entry.leaves, split, lambda xs: xs[0].reshape(-1, head_dim))


def plain_layers(
    config: ModelConfig, products: Mapping[str, str], norms: Mapping[str, str], prefix: str = "model.layers"
) -> list[Entry]:
    """Layers in which every product is a tensor of its own; maps from their names to ours."""
    entries = []
    for i in range(config.num_layers):
        leaf = partial(layer_leaf, config, i)
        for theirs, ours in norms.items():
            entries += norm(config, f"{prefix}.{i}.{theirs}", ours, leaf)
        for theirs, ours in products.items():
            entries += product(config, f"{prefix}.{i}.{theirs}", ours, leaf)
    return entries


def fused_qkv(config: ModelConfig, layer: int, name: str, *, is_transposed: bool = True) -> list[Entry]:
    """All queries, then all keys, then all values in one tensor."""
    spec = config.layers[layer]
    sizes = [heads * config.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
    return _fused(config, layer, name, [f"attention/{x}_proj" for x in "qkv"], sizes, is_transposed)


def fused_gate_up(config: ModelConfig, layer: int, name: str) -> list[Entry]:
    """The gate, then up, in one tensor."""
    sizes = [config.layers[layer].ffn_dim] * 2
    return _fused(config, layer, name, ["feedforward/gate_proj", "feedforward/up_proj"], sizes)


def _fused(
    config: ModelConfig, layer: int, name: str, ours: list[str], sizes: list[int], is_transposed: bool = True
) -> list[Entry]:
    kernels, biases = _kernels_and_biases(config, layer, ours)
    weight = concatenated(f"{name}.weight", kernels, sizes, transpose=is_transposed)
    bias = [concatenated(f"{name}.bias", biases, sizes, transpose=False)] if has_bias(config, ours[0]) else []
    return [weight, *bias]


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

    kernels, biases = _kernels_and_biases(config, layer, [f"attention/{x}_proj" for x in "qkv"])
    weight = Entry(f"{name}.weight", kernels, split, join)
    return [weight] + ([Entry(f"{name}.bias", biases, split, join)] if config.qkv_bias else [])


def _kernels_and_biases(config: ModelConfig, layer: int, ours: list[str]) -> list[tuple[Leaf, ...]]:
    return [tuple(layer_leaf(config, layer, f"{each}/{kind}") for each in ours) for kind in ("kernel", "bias")]


def interleaved(config: ModelConfig, entries: list[Entry]) -> list[Entry]:
    """The entries of a file that rotates neighbours (2i, 2i + 1), as GPT-J does, where we rotate halves.

    Of each head's rotated dimensions we hold the even ones before the odd: in queries and keys, their biases and the
    gains of their norms. A product of a query and a key is the same sum in another order.
    """
    K, R = config.head_dim, config.rotary_dim

    def reordered(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        heads = x.reshape(*x.shape[:-1], -1, K)
        rotated = heads[..., :R].reshape(*heads.shape[:-1], *shape).swapaxes(-1, -2).reshape(*heads.shape[:-1], R)
        return np.concatenate([rotated, heads[..., R:]], axis=-1).reshape(x.shape)

    def of(entry: Entry) -> Entry:
        rotated = [re.search(r"/attention/[qk]_(proj|norm)/", leaf.path) is not None for leaf in entry.leaves]

        def each(xs: Arrays, shape: tuple[int, int]) -> Arrays:
            return [reordered(x, shape) if turns else x for x, turns in zip(xs, rotated, strict=True)]

        def split(x: np.ndarray) -> Arrays:
            return each(entry.split(x), (R // 2, 2))

        def join(xs: Arrays) -> np.ndarray:
            return entry.join(each(xs, (2, R // 2)))

        return Entry(entry.name, entry.leaves, split, join) if any(rotated) else entry

    return [of(entry) for entry in entries]
