"""Names and layouts of GGUF's tensors for a config and an architecture, as entries of the weight map."""

from __future__ import annotations

from functools import partial

import numpy as np

from slmjax.formats.gguf.archs import Arch
from slmjax.formats.weight_map import Entry, Leaf, as_is, concatenated, layer_leaf, transposed
from slmjax.models.config import LayerSpec, ModelConfig


def entries(config: ModelConfig, arch: Arch, *, fused_qkv: bool) -> list[Entry]:
    """Every tensor of the network. fused_qkv: q, k and v lie in one tensor (some architectures have either)."""
    c = config
    out = [as_is("token_embd.weight", Leaf("embedder/embedding"))]
    if c.position == "learned":
        out.append(as_is("position_embd.weight", Leaf("position_embedder/embedding")))
    if c.embedding_norm:
        out += _norm(c, "token_embd_norm", partial(_top, "embed_norm"))
    for i, spec in enumerate(c.layers):
        out += _layer(c, arch, i, spec, fused_qkv)
    if c.final_norm:
        out += _norm(c, "output_norm", partial(_top, "final_norm"))
    if not c.tie_embeddings:
        out.append(transposed("output.weight", Leaf("lm_head/kernel")))
    if c.head_bias:
        out.append(as_is("output.bias", Leaf("lm_head/bias")))
    return out


def _top(room: str, rest: str) -> Leaf:
    return Leaf(f"{room}/{rest}")


def _layer(c: ModelConfig, arch: Arch, i: int, spec: LayerSpec, fused_qkv: bool) -> list[Entry]:
    def leaf(room: str, rest: str) -> Leaf:
        return layer_leaf(c, i, f"{room}/{rest}")

    def linear(name: str, room: str, bias: bool) -> list[Entry]:
        found = [transposed(f"blk.{i}.{name}.weight", leaf(room, "kernel"))]
        return found + [as_is(f"blk.{i}.{name}.bias", leaf(room, "bias"))] * bias

    def fused(name: str, rooms: list[str], sizes: list[int], bias: bool) -> list[Entry]:
        kernels, biases = ([leaf(room, rest) for room in rooms] for rest in ("kernel", "bias"))
        found = [concatenated(f"blk.{i}.{name}.weight", kernels, sizes, transpose=True)]
        return found + [concatenated(f"blk.{i}.{name}.bias", biases, sizes, transpose=False)] * bias

    out: list[Entry] = []
    for name, room in _norm_names(c, arch).items():
        out += _norm(c, f"blk.{i}.{name}", partial(leaf, room))
    if fused_qkv:
        sizes = [heads * c.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        out += fused("attn_qkv", [f"attention/{x}_proj" for x in "qkv"], sizes, c.qkv_bias)
    else:
        for x, heads in (("q", spec.num_heads), ("k", spec.num_kv_heads)):
            both = linear(f"attn_{x}", f"attention/{x}_proj", c.qkv_bias)
            out += [_interleaved(entry, heads) for entry in both] if arch.interleaved else both
        out += linear("attn_v", "attention/v_proj", c.qkv_bias)
    if c.qk_norm != "none":
        for x in "qk":
            out.append(_gain(c, f"blk.{i}.attn_{x}_norm.weight", leaf(f"attention/{x}_norm", "scale")))
    out += linear("attn_output", "attention/o_proj", c.attention_output_bias)
    if c.gated and arch.fused_gate:
        rooms = ["feedforward/gate_proj", "feedforward/up_proj"]
        out += fused("ffn_up", rooms, [spec.ffn_dim] * 2, c.ffn_bias)
    else:
        if c.gated:
            out += linear("ffn_gate", "feedforward/gate_proj", c.ffn_bias)
        out += linear("ffn_up", "feedforward/up_proj", c.ffn_bias)
    return out + linear("ffn_down", "feedforward/down_proj", c.ffn_bias)


def _norm_names(c: ModelConfig, arch: Arch) -> dict[str, str]:
    """Name of each norm of a layer in the file -> our name."""
    if c.parallel_residual and c.shared_norm:
        return {"attn_norm": "attention_norm"}
    if arch.norms:
        return dict(arch.norms)
    before = {"attn_norm": "attention_norm", "ffn_norm": "ffn_norm"}
    after = {"post_attention_norm": "post_attention_norm", "post_ffw_norm": "post_ffn_norm"}
    return {"output": after, "sandwich": before | after}.get(c.norm_placement, before)


def _norm(c: ModelConfig, name: str, leaf) -> list[Entry]:
    found = [_gain(c, f"{name}.weight", leaf("scale"))] * c.norm_scale
    return found + [as_is(f"{name}.bias", leaf("bias"))] * c.norm_bias


def _gain(c: ModelConfig, name: str, leaf: Leaf) -> Entry:
    """A norm's gain; where we multiply by 1 + scale, the file holds the sum."""
    if not c.norm_unit_offset:
        return as_is(name, leaf)
    return Entry(name, (leaf,), lambda x: [x - np.float32(1)], lambda xs: xs[0].astype(np.float32) + np.float32(1))


def _interleaved(entry: Entry, heads: int) -> Entry:
    """Rows of each head in the order 0, K/2, 1, K/2 + 1 ...: llama.cpp rotates neighbours, we rotate halves."""

    def halves(x: np.ndarray) -> list[np.ndarray]:
        return entry.split(x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape))

    def pairs(xs: list[np.ndarray]) -> np.ndarray:
        x = entry.join(xs)
        return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return Entry(entry.name, entry.leaves, halves, pairs)
