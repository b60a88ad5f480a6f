"""MPT of MosaicML: ALiBi, no bias anywhere; the last slope of StoryWriter is 2 ** -16."""

from __future__ import annotations

from slmjax.models.families.switches import Families, size

FAMILIES: Families = {
    "mpt": (
        {"vocab_size": 50432, "norm": "layer", "gated": False, "activation": "gelu", "position": "alibi"},
        {
            "mpt-7b": size(num_layers=32, embed_dim=4096, num_heads=32),
            "mpt-7b-storywriter": size(
                num_layers=32, embed_dim=4096, num_heads=32, context_length=65536, clip_qkv=6.0, alibi_max_bias=16.0
            ),
        },
    ),
}
