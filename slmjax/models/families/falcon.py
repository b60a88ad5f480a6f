"""Falcon, of which the small one has ALiBi and the large one rotary embeddings."""

from __future__ import annotations

from slmjax.models.families.switches import BIASES, LAYER_NORM, Families, size

FAMILIES: Families = {
    "falcon": (
        {**LAYER_NORM, "gated": False, "activation": "gelu"},
        {
            "falcon-rw-1b": size(
                num_layers=24,
                embed_dim=2048,
                num_heads=32,
                vocab_size=50304,
                position="alibi",
                alibi_scaled=True,
                **BIASES,
            ),
            "falcon-7b": size(
                num_layers=32,
                embed_dim=4544,
                num_heads=71,
                num_kv_heads=1,
                vocab_size=65024,
                parallel_residual=True,
                shared_norm=True,
            ),
        },
    ),
}
