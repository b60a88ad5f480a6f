"""The MiniCPM family."""

from __future__ import annotations

import math
from typing import Any

from slmjax.models.families.switches import Families, Switches, size


def minicpm(*, num_layers: int, embed_dim: int, vocab_size: int, **sizes: Any) -> Switches:
    """MiniCPM's width transfer (arXiv:2404.06395, table 7): depth scale 1.4, logits on a base width of 256."""
    scale: Switches = {"residual_multiplier": 1.4 / math.sqrt(num_layers), "logit_divisor": embed_dim / 256}
    return size(num_layers=num_layers, embed_dim=embed_dim, vocab_size=vocab_size, **sizes, **scale)


FAMILIES: Families = {
    "minicpm": (
        {"context_length": 4096, "embedding_multiplier": 12.0, "init_std": 0.1},
        {
            "minicpm-1b": minicpm(
                num_layers=52, embed_dim=1536, num_heads=24, ffn_dim=3840, num_kv_heads=8, vocab_size=73440
            ),
            "minicpm-2b": minicpm(
                num_layers=40, embed_dim=2304, num_heads=36, ffn_dim=5760, num_kv_heads=36, vocab_size=122753
            ),
        },
    ),
}
