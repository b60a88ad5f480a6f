"""The Gemma family, all generations."""

from __future__ import annotations

from slmjax.models.families.switches import Families, Switches, size

GEMMA: Switches = {
    "vocab_size": 256000,
    "head_dim": 256,
    "context_length": 8192,
    "norm_eps": 1e-6,
    "norm_unit_offset": True,
    "norm_scale_float32": True,
    "activation": "gelu_tanh",
}
GEMMA3: Switches = {
    **GEMMA,
    "context_length": 32768,
    "norm_placement": "sandwich",
    "qk_norm": "head",
    "layer_pattern": ("local",) * 5 + ("global",),
    "rope_theta": 1e6,
    "rope_theta_local": 1e4,
}

FAMILIES: Families = {
    "gemma": (
        {**GEMMA, "embedding_multiplier": 2048**0.5},
        {"gemma-2b": size(num_layers=18, embed_dim=2048, num_heads=8, ffn_dim=16384, num_kv_heads=1)},
    ),
    "gemma-2": (
        {
            **GEMMA,
            "embedding_multiplier": 2304**0.5,
            "norm_placement": "sandwich",
            "window": 4096,
            "layer_pattern": ("local", "global"),
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
        },
        {"gemma-2-2b": size(num_layers=26, embed_dim=2304, num_heads=8, ffn_dim=9216, num_kv_heads=4)},
    ),
    "gemma-3": (
        {**GEMMA3, "vocab_size": 262144, "window": 512},
        {
            "gemma-3-270m": size(
                num_layers=18, embed_dim=640, num_heads=4, ffn_dim=2048, num_kv_heads=1, embedding_multiplier=640**0.5
            ),
            "gemma-3-1b": size(
                num_layers=26, embed_dim=1152, num_heads=4, ffn_dim=6912, num_kv_heads=1, embedding_multiplier=1152**0.5
            ),
        },
    ),
}
