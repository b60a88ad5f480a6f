"""How the sizes of a family are written down in the family tables."""

from __future__ import annotations

import math
from typing import Any

Switches = dict[str, Any]


def size(layers: int, dim: int, heads: int, ffn: int = 0, kv: int = 0, **rest: Any) -> Switches:
    """One size: layers, width, query heads, feed-forward width (0: 4 x dim), key/value heads (0: all)."""
    shape = {"num_layers": layers, "embed_dim": dim, "num_heads": heads, "num_kv_heads": kv}
    return {**shape, "ffn_dim": ffn or 4 * dim, **rest}


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to a width, never more than a tenth below it (OpenELM's rounding)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def openelm(layers: int, dim: int, head_dim: int) -> Switches:
    """OpenELM's layer-wise scaling (arXiv:2404.14619, eq. 2): queries from 0.5 to 1 times dim, ffn from 0.5 to 4."""

    def steps(stop: float) -> list[float]:
        return [round(0.5 + (stop - 0.5) * i / (layers - 1), 2) for i in range(layers)]

    heads = tuple(make_divisible(dim * m, head_dim * 4) // head_dim for m in steps(1.0))
    return {
        "num_layers": layers,
        "embed_dim": dim,
        "head_dim": head_dim,
        "num_heads": heads,
        "num_kv_heads": tuple(h // 4 for h in heads),
        "ffn_dim": tuple(make_divisible(dim * m, 256) for m in steps(4.0)),
    }


def minicpm(layers: int, dim: int, heads: int, ffn: int, kv: int, vocab_size: int) -> Switches:
    """MiniCPM's width transfer (arXiv:2404.06395, table 7): depth scale 1.4, logits on a base width of 256."""
    scale = {"residual_multiplier": 1.4 / math.sqrt(layers), "logit_divisor": dim / 256}
    return size(layers, dim, heads, ffn, kv, vocab_size=vocab_size, **scale)
