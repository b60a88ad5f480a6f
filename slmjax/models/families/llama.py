"""LLaMA and its nearest heirs: Mistral and H2O-Danube."""

from __future__ import annotations

from slmjax.models.config import RopeScaling
from slmjax.models.families.switches import Families, Switches, size

LLAMA: Switches = {"vocab_size": 32000, "tie_embeddings": False}
LLAMA3_ROPE = RopeScaling("llama3", factor=32.0, original_context_length=8192)
DEEPSEEK_CODER = size(
    num_layers=24,
    embed_dim=2048,
    num_heads=16,
    ffn_dim=5504,
    vocab_size=32256,
    norm_eps=1e-6,
    rope_theta=1e5,
    rope_scaling=RopeScaling("linear", factor=4.0),
    context_length=16384,
)

FAMILIES: Families = {
    "llama": (
        LLAMA,
        {
            "llama-7b": size(num_layers=32, embed_dim=4096, num_heads=32, ffn_dim=11008, norm_eps=1e-6),
            "llama-2-7b": size(num_layers=32, embed_dim=4096, num_heads=32, ffn_dim=11008, context_length=4096),
            "amd-llama-135m": size(num_layers=12, embed_dim=768, num_heads=12, ffn_dim=2048),
            "sheared-llama-1.3b": size(num_layers=24, embed_dim=2048, num_heads=16, ffn_dim=5504, context_length=4096),
            "sheared-llama-2.7b": size(num_layers=32, embed_dim=2560, num_heads=20, ffn_dim=6912, context_length=4096),
            "tinyllama-1.1b": size(num_layers=22, embed_dim=2048, num_heads=32, ffn_dim=5632, num_kv_heads=4),
            "prem-1b": size(
                num_layers=22, embed_dim=2048, num_heads=32, ffn_dim=5632, num_kv_heads=4, context_length=8192
            ),
            "prem-1b-chat": size(
                num_layers=22,
                embed_dim=2048,
                num_heads=32,
                ffn_dim=5632,
                num_kv_heads=4,
                context_length=8192,
                vocab_size=32004,
            ),
            "deepseek-coder-1.3b": DEEPSEEK_CODER,
            "prem-1b-sql": DEEPSEEK_CODER,
        },
    ),
    "llama-3.2": (
        {"vocab_size": 128256, "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE, "context_length": 131072},
        {
            "llama-3.2-1b": size(num_layers=16, embed_dim=2048, num_heads=32, ffn_dim=8192, num_kv_heads=8),
            "llama-3.2-3b": size(num_layers=28, embed_dim=3072, num_heads=24, ffn_dim=8192, num_kv_heads=8),
        },
    ),
    "mistral": (
        {**LLAMA, "window": 4096, "layer_pattern": ("local",)},
        {
            "mistral-7b-v0.1": size(
                num_layers=32, embed_dim=4096, num_heads=32, ffn_dim=14336, num_kv_heads=8, context_length=32768
            ),
            "mistral-7b-v0.3": size(
                num_layers=32,
                embed_dim=4096,
                num_heads=32,
                ffn_dim=14336,
                num_kv_heads=8,
                vocab_size=32768,
                context_length=32768,
                rope_theta=1e6,
                window=None,
                layer_pattern=("global",),
            ),
            "h2o-danube-1.8b": size(
                num_layers=24, embed_dim=2560, num_heads=32, ffn_dim=6912, num_kv_heads=8, context_length=16384
            ),
        },
    ),
    "h2o-danube3": (
        {**LLAMA, "rope_theta": 1e5, "context_length": 8192},
        {
            "h2o-danube3-500m": size(num_layers=16, embed_dim=1536, num_heads=16, ffn_dim=4096, num_kv_heads=8),
            "h2o-danube3-4b": size(num_layers=24, embed_dim=3840, num_heads=32, ffn_dim=10240, num_kv_heads=8),
        },
    ),
}
