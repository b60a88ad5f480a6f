"""The Granite family."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "granite": (
        {
            "vocab_size": 49155,
            "context_length": 131072,
            "rope_theta": 5e6,
            "embedding_multiplier": 12.0,
            "attention_scale": 1 / 64,
            "residual_multiplier": 0.22,
            "logit_divisor": 8.0,
        },
        {"granite-3.1-2b": size(num_layers=40, embed_dim=2048, num_heads=32, ffn_dim=8192, num_kv_heads=8)},
    ),
}
