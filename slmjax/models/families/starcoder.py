"""StarCoder (arXiv:2305.06161), GPT-2 with one key/value head, and StarCoder2 (arXiv:2402.19173)."""

from __future__ import annotations

from slmjax.models.families.switches import PLAIN, Families, Switches, size

STARCODER: Switches = {**PLAIN, "position": "learned", "activation": "gelu_tanh", "num_kv_heads": 1}
FAMILIES: Families = {
    "starcoder": (
        STARCODER,
        {
            "tiny-starcoder-py": {
                **size(num_layers=20, embed_dim=768, num_heads=12, num_kv_heads=1),
                "vocab_size": 49152,
                "context_length": 8192,
            },
            "starcoderbase-1b": {
                **size(num_layers=24, embed_dim=2048, num_heads=16, num_kv_heads=1),
                "vocab_size": 49152,
                "context_length": 8192,
            },
        },
    ),
    "starcoder2": (
        {
            **PLAIN,
            "vocab_size": 49152,
            "context_length": 16384,
            "activation": "gelu_tanh",
            "window": 4096,
            "layer_pattern": ("local",),
        },
        {
            "starcoder2-3b": {
                **size(num_layers=30, embed_dim=3072, num_heads=24, num_kv_heads=2),
                "rope_theta": 999999.4420358813,
            },
        },
    ),
}
