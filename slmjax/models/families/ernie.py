"""ERNIE-4.5 without experts."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "ernie-4.5": (
        {"vocab_size": 103424, "context_length": 131072, "head_dim": 128, "rope_theta": 5e5},
        {"ernie-4.5-0.3b": size(num_layers=18, embed_dim=1024, num_heads=16, num_kv_heads=2, ffn_dim=3072)},
    ),
}
