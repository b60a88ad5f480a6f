"""Phi, and Phi-3-mini with the factors of LongRoPE that stretch its 4k context to 128k."""

from __future__ import annotations

from slmjax.models.config import RopeScaling
from slmjax.models.families.switches import PLAIN, Families, size

# The two factors of each pair of rotated dimensions, as in the configuration of the release of July 2024.
# fmt: off
_LONG = (
    1.0700000524520874, 1.1200000047683716, 1.149999976158142, 1.4199999570846558, 1.5699999332427979,
    1.7999999523162842, 2.129999876022339, 2.129999876022339, 3.009999990463257, 5.910000324249268, 6.950000286102295,
    9.070000648498535, 9.930000305175781, 10.710000038146973, 11.130000114440918, 14.609999656677246,
    15.409998893737793, 19.809999465942383, 37.279998779296875, 38.279998779296875, 38.599998474121094,
    40.12000274658203, 46.20000457763672, 50.940006256103516, 53.66000747680664, 54.9373893737793, 56.89738845825195,
    57.28738784790039, 59.98738479614258, 60.86738586425781, 60.887386322021484, 61.71739196777344, 62.91739273071289,
    62.957393646240234, 63.41739273071289, 63.8173942565918, 63.83739471435547, 63.897396087646484, 63.93739700317383,
    64.06739807128906, 64.11434936523438, 64.12435150146484, 64.15435028076172, 64.19435119628906, 64.24435424804688,
    64.57435607910156, 64.69000244140625, 64.76000213623047,
)
_SHORT = (
    1.1, 1.1, 1.1, 1.3000000000000003, 1.3500000000000003, 1.3500000000000003, 1.4000000000000004, 1.5500000000000005,
    *(2.000000000000001,) * 17, *(2.0500000000000007,) * 6, 2.1000000000000005, 2.1000000000000005, 2.1500000000000004,
    2.25, 2.25, 2.25, 2.25, 2.25, 2.3999999999999995, 2.4499999999999993, 2.499999999999999, 2.6999999999999984,
    2.6999999999999984, 2.7499999999999982, 2.799999999999998, 2.8999999999999977, 3.049999999999997,
)
# fmt: on

FAMILIES: Families = {
    "phi": (
        {
            **PLAIN,
            "vocab_size": 51200,
            "rope_fraction": 0.5,
            "activation": "gelu_tanh",
            "parallel_residual": True,
            "shared_norm": True,
            "tie_embeddings": False,
            "head_bias": True,
        },
        {
            "phi-1": size(num_layers=24, embed_dim=2048, num_heads=32),
            "phi-1.5": size(num_layers=24, embed_dim=2048, num_heads=32),
            "phi-2": size(num_layers=32, embed_dim=2560, num_heads=32, rope_fraction=0.4),
        },
    ),
    "phi-3": (
        {"vocab_size": 32064, "tie_embeddings": False, "layer_pattern": ("local",)},
        {
            "phi-3-mini-4k": size(
                num_layers=32, embed_dim=3072, num_heads=32, ffn_dim=8192, context_length=4096, window=2047
            ),
            "phi-3-mini-128k": size(
                num_layers=32,
                embed_dim=3072,
                num_heads=32,
                ffn_dim=8192,
                context_length=131072,
                window=262144,
                rope_scaling=RopeScaling("longrope", 32.0, 4096, short_factor=_SHORT, long_factor=_LONG),
            ),
        },
    ),
}
