"""InternLM2 (arXiv:2403.17297), LLaMA's network."""

from __future__ import annotations

from slmjax.models.config import RopeScaling
from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "internlm2": (
        {"vocab_size": 92544, "rope_theta": 1e6, "tie_embeddings": False},
        {
            "internlm2-1.8b": size(
                num_layers=24,
                embed_dim=2048,
                num_heads=16,
                num_kv_heads=8,
                ffn_dim=8192,
                context_length=32768,
                rope_scaling=RopeScaling("dynamic", 2.0, 32768),
            ),
        },
    ),
}
