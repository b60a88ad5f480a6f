"""The StableLM family."""

from __future__ import annotations

from slmjax.models.families.switches import LAYER_NORM, Families, size

FAMILIES: Families = {
    "stablelm": (
        {**LAYER_NORM, "rope_fraction": 0.25, "context_length": 4096, "tie_embeddings": False},
        {
            "stablelm-3b": size(num_layers=32, embed_dim=2560, num_heads=32, ffn_dim=6912, vocab_size=50304),
            "stablelm-2-1.6b": size(
                num_layers=24, embed_dim=2048, num_heads=32, ffn_dim=5632, vocab_size=100352, qkv_bias=True
            ),
        },
    ),
}
