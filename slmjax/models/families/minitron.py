"""The Minitron (Nemotron) family."""

from __future__ import annotations

from slmjax.models.families.switches import LAYER_NORM, Families, size

FAMILIES: Families = {
    "minitron": (
        {
            **LAYER_NORM,
            "vocab_size": 256000,
            "context_length": 4096,
            "norm_unit_offset": True,
            "rope_fraction": 0.5,
            "activation": "relu2",
            "gated": False,
            "tie_embeddings": False,
        },
        {"minitron-4b": size(num_layers=32, embed_dim=3072, num_heads=24, ffn_dim=9216, num_kv_heads=8)},
    ),
}
