"""The Qwen family, all generations."""

from __future__ import annotations

from slmjax.models.families.switches import Families, Switches, size

QWEN: Switches = {"vocab_size": 151936, "norm_eps": 1e-6, "rope_theta": 1e6, "context_length": 32768}

FAMILIES: Families = {
    "qwen1.5": (
        {**QWEN, "qkv_bias": True, "tie_embeddings": False},
        {
            "qwen1.5-0.5b": size(num_layers=24, embed_dim=1024, num_heads=16, ffn_dim=2816, tie_embeddings=True),
            "qwen1.5-1.8b": size(num_layers=24, embed_dim=2048, num_heads=16, ffn_dim=5504),
            "qwen1.5-4b": size(num_layers=40, embed_dim=2560, num_heads=20, ffn_dim=6912),
        },
    ),
    "qwen2": (
        {**QWEN, "qkv_bias": True},
        {
            "qwen2-0.5b": size(
                num_layers=24, embed_dim=896, num_heads=14, ffn_dim=4864, num_kv_heads=2, context_length=131072
            ),
            "qwen2-1.5b": size(
                num_layers=28, embed_dim=1536, num_heads=12, ffn_dim=8960, num_kv_heads=2, context_length=131072
            ),
            "qwen2.5-0.5b": size(num_layers=24, embed_dim=896, num_heads=14, ffn_dim=4864, num_kv_heads=2),
            "qwen2.5-1.5b": size(num_layers=28, embed_dim=1536, num_heads=12, ffn_dim=8960, num_kv_heads=2),
            "qwen2.5-3b": size(num_layers=36, embed_dim=2048, num_heads=16, ffn_dim=11008, num_kv_heads=2),
        },
    ),
    "qwen3": (
        {**QWEN, "head_dim": 128, "qk_norm": "head", "context_length": 40960},
        {
            "qwen3-0.6b": size(num_layers=28, embed_dim=1024, num_heads=16, ffn_dim=3072, num_kv_heads=8),
            "qwen3-1.7b": size(num_layers=28, embed_dim=2048, num_heads=16, ffn_dim=6144, num_kv_heads=8),
            "qwen3-4b": size(num_layers=36, embed_dim=2560, num_heads=32, ffn_dim=9728, num_kv_heads=8),
        },
    ),
}
