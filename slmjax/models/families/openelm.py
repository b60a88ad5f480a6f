"""OpenELM, whose layers grow in width."""

from __future__ import annotations

from slmjax.models.families.switches import Families, Switches


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to a width, never more than a tenth below it (OpenELM's rounding)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def openelm(*, num_layers: int, embed_dim: int, head_dim: int) -> Switches:
    """OpenELM's layer-wise scaling (arXiv:2404.14619, eq. 2): queries from 0.5 to 1 widths, feed-forward to 4."""

    def steps(stop: float) -> list[float]:
        return [round(0.5 + (stop - 0.5) * i / (num_layers - 1), 2) for i in range(num_layers)]

    heads = tuple(make_divisible(embed_dim * m, head_dim * 4) // head_dim for m in steps(1.0))
    return {
        "num_layers": num_layers,
        "embed_dim": embed_dim,
        "head_dim": head_dim,
        "num_heads": heads,
        "num_kv_heads": tuple(h // 4 for h in heads),
        "ffn_dim": tuple(make_divisible(embed_dim * m, 256) for m in steps(4.0)),
    }


FAMILIES: Families = {
    "openelm": (
        {"vocab_size": 32000, "norm_eps": 1e-6, "qk_norm": "head", "init_std": None},
        {
            "openelm-270m": openelm(num_layers=16, embed_dim=1280, head_dim=64),
            "openelm-450m": openelm(num_layers=20, embed_dim=1536, head_dim=64),
            "openelm-1.1b": openelm(num_layers=28, embed_dim=2048, head_dim=64),
            "openelm-3b": openelm(num_layers=36, embed_dim=3072, head_dim=128),
        },
    ),
}
