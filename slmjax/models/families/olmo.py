"""OLMo, OLMo-2 and DCLM."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "olmo": (
        {"vocab_size": 50304, "norm": "layer", "norm_scale": False},
        {"olmo-1b": size(num_layers=16, embed_dim=2048, num_heads=16, ffn_dim=8192)},
    ),
    "dclm": (
        {"vocab_size": 50432, "norm": "layer", "qk_norm": "full", "tie_embeddings": False},
        {"dclm-1b": size(num_layers=24, embed_dim=2048, num_heads=16, ffn_dim=5632)},
    ),
    "olmo-2": (
        {
            "vocab_size": 100352,
            "context_length": 4096,
            "norm_eps": 1e-6,
            "norm_placement": "output",
            "norm_scale_float32": True,
            "qk_norm": "full",
            "rope_theta": 5e5,
            "tie_embeddings": False,
        },
        {"olmo-2-1b": size(num_layers=16, embed_dim=2048, num_heads=16, ffn_dim=8192)},
    ),
}
