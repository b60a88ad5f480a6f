"""GLM-4, and its release of April 2025 with norms before and behind each sub-layer."""

from __future__ import annotations

from slmjax.models.families.switches import Families, Switches, size

GLM: Switches = {
    **size(num_layers=40, embed_dim=4096, num_heads=32, num_kv_heads=2, ffn_dim=13696),
    "vocab_size": 151552,
    "head_dim": 128,
    "qkv_bias": True,
    "rope_fraction": 0.5,
    "tie_embeddings": False,
}
FAMILIES: Families = {
    "glm": (GLM, {"glm-4-9b": {"context_length": 131072, "norm_eps": 1.5625e-7}}),
    "glm4": (GLM, {"glm-4-9b-0414": {"context_length": 32768, "norm_placement": "sandwich"}}),
}
