"""SmolLM, of which the third leaves every fourth layer without rotation."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "smollm": (
        {"vocab_size": 49152},
        {
            "smollm-135m": size(num_layers=30, embed_dim=576, num_heads=9, ffn_dim=1536, num_kv_heads=3),
            "smollm-360m": size(num_layers=32, embed_dim=960, num_heads=15, ffn_dim=2560, num_kv_heads=5),
            "smollm-1.7b": size(num_layers=24, embed_dim=2048, num_heads=32, ffn_dim=8192),
        },
    ),
    "smollm2": (
        {"vocab_size": 49152, "rope_theta": 1e5, "context_length": 8192},
        {
            "smollm2-135m": size(
                num_layers=30, embed_dim=576, num_heads=9, ffn_dim=1536, num_kv_heads=3, init_std=576**-0.5
            ),
            "smollm2-360m": size(num_layers=32, embed_dim=960, num_heads=15, ffn_dim=2560, num_kv_heads=5),
            "smollm2-1.7b": size(num_layers=24, embed_dim=2048, num_heads=32, ffn_dim=8192, rope_theta=1.3e5),
        },
    ),
    "smollm3": (
        {
            "vocab_size": 128256,
            "norm_eps": 1e-6,
            "rope_theta": 5e6,
            "rope_pattern": (True, True, True, False),
            "context_length": 65536,
        },
        {"smollm3-3b": size(num_layers=36, embed_dim=2048, num_heads=16, ffn_dim=11008, num_kv_heads=4)},
    ),
}
