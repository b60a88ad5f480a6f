"""EXAONE-4; its model of 1.2B has no windows."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "exaone-4": (
        {"vocab_size": 102400, "context_length": 65536, "norm_placement": "output", "qk_norm": "head"},
        {
            "exaone-4.0-1.2b": size(
                num_layers=30,
                embed_dim=2048,
                num_heads=32,
                num_kv_heads=8,
                ffn_dim=4096,
                rope_theta=1e6,
                rope_scaling={"kind": "llama3", "factor": 16.0, "original_context_length": 8192},
            )
        },
    ),
}
