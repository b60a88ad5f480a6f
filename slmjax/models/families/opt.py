"""OPT, and Galactica, which is built as OPT is."""

from __future__ import annotations

from slmjax.models.families.switches import PLAIN, Families, size

FAMILIES: Families = {
    "opt": (
        {**PLAIN, "vocab_size": 50272, "position": "learned", "position_offset": 2, "activation": "relu"},
        {
            "opt-125m": size(num_layers=12, embed_dim=768, num_heads=12),
            "opt-350m": size(
                num_layers=24,
                embed_dim=1024,
                num_heads=16,
                embedding_projection_dim=512,
                norm_placement="post",
                final_norm=False,
            ),
            "opt-1.3b": size(num_layers=24, embed_dim=2048, num_heads=32),
            "opt-2.7b": size(num_layers=32, embed_dim=2560, num_heads=32),
        },
    ),
    # The paper's network has no biases; the released one has them, as it has its norms' gains.
    "galactica": (
        {**PLAIN, "vocab_size": 50000, "position": "learned", "position_offset": 2, "activation": "gelu"},
        {
            "galactica-125m": size(num_layers=12, embed_dim=768, num_heads=12),
            "galactica-1.3b": size(num_layers=24, embed_dim=2048, num_heads=32),
        },
    ),
}
