"""GPT-2 and the networks that kept its architecture: Cerebras-GPT and both Lamini-GPTs."""

from __future__ import annotations

from slmjax.models.families.switches import PLAIN, Families, size

FAMILIES: Families = {
    "gpt2": (
        {**PLAIN, "vocab_size": 50257, "context_length": 1024, "position": "learned", "activation": "gelu_tanh"},
        {
            "gpt2": size(num_layers=12, embed_dim=768, num_heads=12),
            "gpt2-medium": size(num_layers=24, embed_dim=1024, num_heads=16),
            "gpt2-large": size(num_layers=36, embed_dim=1280, num_heads=20),
            "gpt2-xl": size(num_layers=48, embed_dim=1600, num_heads=25),
        },
    ),
    "cerebras-gpt": (
        {**PLAIN, "vocab_size": 50257, "position": "learned", "activation": "gelu"},
        {
            "cerebras-gpt-111m": size(num_layers=10, embed_dim=768, num_heads=12),
            "cerebras-gpt-256m": size(num_layers=14, embed_dim=1088, num_heads=17),
            "cerebras-gpt-590m": size(num_layers=18, embed_dim=1536, num_heads=12),
            "cerebras-gpt-1.3b": size(num_layers=24, embed_dim=2048, num_heads=16),
            "cerebras-gpt-2.7b": size(num_layers=32, embed_dim=2560, num_heads=32),
        },
    ),
    "lamini-gpt": (  # GPT-2 with one more token, [PAD]
        {**PLAIN, "vocab_size": 50258, "context_length": 1024, "position": "learned", "activation": "gelu_tanh"},
        {
            "lamini-gpt-124m": size(num_layers=12, embed_dim=768, num_heads=12),
            "lamini-gpt-774m": size(num_layers=36, embed_dim=1280, num_heads=20),
            "lamini-gpt-1.5b": size(num_layers=48, embed_dim=1600, num_heads=25),
        },
    ),
    "lamini-cerebras": (
        {**PLAIN, "vocab_size": 50258, "position": "learned", "activation": "gelu"},
        {
            "lamini-cerebras-111m": size(num_layers=10, embed_dim=768, num_heads=12),
            "lamini-cerebras-256m": size(num_layers=14, embed_dim=1088, num_heads=17),
            "lamini-cerebras-590m": size(num_layers=18, embed_dim=1536, num_heads=12),
            "lamini-cerebras-1.3b": size(num_layers=24, embed_dim=2048, num_heads=16),
        },
    ),
}
