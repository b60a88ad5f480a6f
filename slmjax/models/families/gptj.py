"""GPT-J: attention and feed-forward side by side behind one norm, a quarter of each head rotated."""

from __future__ import annotations

from slmjax.models.families.switches import LAYER_NORM, Families, size

FAMILIES: Families = {
    "gpt-j": (
        {
            **LAYER_NORM,
            "vocab_size": 50400,
            "gated": False,
            "ffn_bias": True,
            "activation": "gelu_tanh",
            "rope_fraction": 0.25,
            "parallel_residual": True,
            "shared_norm": True,
            "tie_embeddings": False,
            "head_bias": True,
        },
        {"gpt-j-6b": size(num_layers=28, embed_dim=4096, num_heads=16)},
    ),
}
