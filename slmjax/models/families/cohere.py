"""Command-R and Aya of Cohere; of four layers of Command-R7B three have a window and one sees all without rotating."""

from __future__ import annotations

from slmjax.models.families.switches import Families, Switches, size

COHERE: Switches = {
    **size(num_layers=32, embed_dim=4096, num_heads=32, num_kv_heads=8, ffn_dim=14336),
    "vocab_size": 256000,
    "norm": "layer",
    "parallel_residual": True,
    "shared_norm": True,
}
FAMILIES: Families = {
    "cohere": (COHERE, {"aya-expanse-8b": {"context_length": 8192, "logit_divisor": 8.0}}),
    "cohere2": (
        {
            **COHERE,
            "window": 4096,
            "layer_pattern": ("local", "local", "local", "global"),
            "rope_pattern": (True, True, True, False),
        },
        {"command-r7b": {"context_length": 132096, "rope_theta": 50_000.0, "logit_divisor": 4.0}},
    ),
}
