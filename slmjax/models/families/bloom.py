"""BLOOM: ALiBi and a norm on the embedding."""

from __future__ import annotations

from slmjax.models.families.switches import PLAIN, Families, size

FAMILIES: Families = {
    "bloom": (
        {**PLAIN, "vocab_size": 250880, "position": "alibi", "activation": "gelu_tanh", "embedding_norm": True},
        {
            "bloom-560m": size(num_layers=24, embed_dim=1024, num_heads=16),
            "bloom-1b1": size(num_layers=24, embed_dim=1536, num_heads=16),
            "bloom-1b7": size(num_layers=24, embed_dim=2048, num_heads=16),
            "bloom-3b": size(num_layers=30, embed_dim=2560, num_heads=32),
        },
    ),
}
