"""MobileLLM, which may run each block twice."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "mobilellm": (
        {"vocab_size": 32000},
        {
            "mobilellm-125m": size(num_layers=30, embed_dim=576, num_heads=9, ffn_dim=1536, num_kv_heads=3),
            "mobilellm-125m-layer-share": size(
                num_layers=30, embed_dim=576, num_heads=9, ffn_dim=1536, num_kv_heads=3, block_repeats=2
            ),
            "mobilellm-350m": size(num_layers=32, embed_dim=960, num_heads=15, ffn_dim=2560, num_kv_heads=5),
            "mobilellm-350m-layer-share": size(
                num_layers=32, embed_dim=960, num_heads=15, ffn_dim=2560, num_kv_heads=5, block_repeats=2
            ),
            "mobilellm-600m": size(num_layers=40, embed_dim=1152, num_heads=18, ffn_dim=3072, num_kv_heads=6),
            "mobilellm-1b": size(num_layers=54, embed_dim=1280, num_heads=20, ffn_dim=3584, num_kv_heads=5),
            "mobilellm-1.5b": size(num_layers=54, embed_dim=1600, num_heads=25, ffn_dim=4352, num_kv_heads=5),
        },
    ),
}
