"""Names and layouts of GGUF's tensors for a config and an architecture, as entries of the weight map."""

from __future__ import annotations

from functools import partial

import numpy as np

from slmjax.formats.entries import ends, fused_gate_up, interleaved, norm, product, qk_norms
from slmjax.formats.entries import fused_qkv as qkv_in_one
from slmjax.formats.gguf.archs import Arch
from slmjax.formats.weight_map import Entry, Leaf, as_is, layer_leaf
from slmjax.models.config import ModelConfig


def entries(config: ModelConfig, arch: Arch, *, fused_qkv: bool) -> list[Entry]:
    """Every tensor of the network. fused_qkv: q, k and v lie in one tensor (some architectures have either)."""
    table, *rest = ends(config, "token_embd", "output_norm", head="output")
    out = [table]
    if config.position == "learned":
        out.append(as_is("position_embd.weight", Leaf("position_embedder/embedding")))
    if config.embedding_norm:
        out += norm(config, "token_embd_norm", "embed_norm")
    for i in range(config.num_layers):
        out += _layer(config, arch, i, fused_qkv)
    out += rest
    out = interleaved(config, out) if arch.interleaved else out
    return [_plus_one(entry) for entry in out] if config.norm_unit_offset else out


def _layer(c: ModelConfig, arch: Arch, i: int, fused_qkv: bool) -> list[Entry]:
    at, leaf = f"blk.{i}", partial(layer_leaf, c, i)
    out: list[Entry] = []
    for name, ours in _norm_names(c, arch).items():
        out += norm(c, f"{at}.{name}", ours, leaf)
    if fused_qkv:
        out += qkv_in_one(c, i, f"{at}.attn_qkv")
    else:
        for x in "qkv":
            out += product(c, f"{at}.attn_{x}", f"attention/{x}_proj", leaf)
    out += qk_norms(c, f"{at}.attn_", leaf)
    out += product(c, f"{at}.attn_output", "attention/o_proj", leaf)
    if c.gated and arch.fused_gate:
        out += fused_gate_up(c, i, f"{at}.ffn_up")
    else:
        for x in ("gate", "up") if c.gated else ("up",):
            out += product(c, f"{at}.ffn_{x}", f"feedforward/{x}_proj", leaf)
    return out + product(c, f"{at}.ffn_down", "feedforward/down_proj", leaf)


def _norm_names(c: ModelConfig, arch: Arch) -> dict[str, str]:
    """Name of each norm of a layer in the file -> our name."""
    if c.parallel_residual and c.shared_norm:
        return {"attn_norm": "attention_norm"}
    if arch.norms:
        return dict(arch.norms)
    before = {"attn_norm": "attention_norm", "ffn_norm": "ffn_norm"}
    after = {"post_attention_norm": "post_attention_norm", "post_ffw_norm": "post_ffn_norm"}
    return {"output": after, "sandwich": before | after}.get(c.norm_placement, before)


def _plus_one(entry: Entry) -> Entry:
    """A norm's gain where we multiply by 1 + scale and the file holds the sum; other entries as they are."""
    if not entry.leaves[0].path.endswith("/scale"):
        return entry
    one = np.float32(1)
    return Entry(entry.name, entry.leaves, lambda x: [x - one], lambda xs: xs[0].astype(np.float32) + one)
