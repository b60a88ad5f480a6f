"""Pythia (GPT-NeoX): attention and feed-forward side by side."""

from __future__ import annotations

from slmjax.models.families.switches import PLAIN, Families, size

FAMILIES: Families = {
    "pythia": (
        {
            **PLAIN,
            "vocab_size": 50304,
            "rope_fraction": 0.25,
            "activation": "gelu",
            "parallel_residual": True,
            "tie_embeddings": False,
        },
        {
            "pythia-14m": size(num_layers=6, embed_dim=128, num_heads=4),
            "pythia-70m": size(num_layers=6, embed_dim=512, num_heads=8),
            "pythia-160m": size(num_layers=12, embed_dim=768, num_heads=12),
            "pythia-410m": size(num_layers=24, embed_dim=1024, num_heads=16),
            "pythia-1b": size(num_layers=16, embed_dim=2048, num_heads=8),
            "pythia-1.4b": size(num_layers=24, embed_dim=2048, num_heads=16),
            "pythia-2.8b": size(num_layers=32, embed_dim=2560, num_heads=32),
        },
    ),
}
