"""OLMo, OLMo-2, OLMo-3 and DCLM."""

from __future__ import annotations

from slmjax.models.families.switches import Families, Switches, size

OLMO2: Switches = {
    "norm_eps": 1e-6,
    "norm_placement": "output",
    "norm_scale_float32": True,
    "qk_norm": "full",
    "rope_theta": 5e5,
    "tie_embeddings": False,
}
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
        {**OLMO2, "vocab_size": 100352, "context_length": 4096},
        {"olmo-2-1b": size(num_layers=16, embed_dim=2048, num_heads=16, ffn_dim=8192)},
    ),
    "olmo-3": (
        {
            **OLMO2,
            "vocab_size": 100278,
            "context_length": 65536,
            "window": 4096,
            "layer_pattern": ("local", "local", "local", "global"),
            "rope_theta_local": 5e5,
            "rope_scaling": {"kind": "yarn", "factor": 8.0, "original_context_length": 8192},
        },
        {"olmo-3-7b": size(num_layers=32, embed_dim=4096, num_heads=32, ffn_dim=11008)},
    ),
}
