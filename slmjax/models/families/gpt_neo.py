"""GPT-Neo, whose layers see all tokens and a window in turn, and TinyStories of its kind (arXiv:2305.07759)."""

from __future__ import annotations

from slmjax.models.families.switches import PLAIN, Families, Switches, size

GPT_NEO: Switches = {
    **PLAIN,
    "vocab_size": 50257,
    "position": "learned",
    "activation": "gelu_tanh",
    "qkv_bias": False,
    "attention_scale": 1.0,
    "window": 256,
    "layer_pattern": ("global", "local"),
}
FAMILIES: Families = {
    "gpt-neo": (
        GPT_NEO,
        {
            "gpt-neo-125m": size(num_layers=12, embed_dim=768, num_heads=12),
            "gpt-neo-1.3b": size(num_layers=24, embed_dim=2048, num_heads=16),
            "gpt-neo-2.7b": size(num_layers=32, embed_dim=2560, num_heads=20),
        },
    ),
    "tinystories": (
        GPT_NEO,
        {
            "tinystories-1m": size(num_layers=8, embed_dim=64, num_heads=16),
            "tinystories-3m": size(num_layers=8, embed_dim=128, num_heads=16),
            "tinystories-8m": size(num_layers=8, embed_dim=256, num_heads=16),
            "tinystories-28m": size(num_layers=8, embed_dim=512, num_heads=16),
            "tinystories-33m": size(num_layers=4, embed_dim=768, num_heads=16),
        },
    ),
}
