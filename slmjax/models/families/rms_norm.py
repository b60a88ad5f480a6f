"""Families with RMSNorm: LLaMA and its heirs."""

from __future__ import annotations

from slmjax.models.config import RopeScaling
from slmjax.models.families.shapes import Switches, minicpm, openelm, size

LLAMA: Switches = {"vocab_size": 32000, "tie_embeddings": False}
QWEN: Switches = {"vocab_size": 151936, "norm_eps": 1e-6, "rope_theta": 1e6, "context_length": 32768}
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
DEEPSEEK_CODER = size(
    *(24, 2048, 16, 5504),
    vocab_size=32256,
    norm_eps=1e-6,
    rope_theta=1e5,
    rope_scaling=RopeScaling("linear", factor=4.0),
    context_length=16384,
)
LLAMA3_ROPE = RopeScaling("llama3", factor=32.0, original_context_length=8192)


# family -> (switches of the whole family, {model name: what the size adds})
FAMILIES: dict[str, tuple[Switches, dict[str, Switches]]] = {
    "llama": (
        LLAMA,
        {
            "llama-7b": size(32, 4096, 32, 11008, norm_eps=1e-6),
            "llama-2-7b": size(32, 4096, 32, 11008, context_length=4096),
            "amd-llama-135m": size(12, 768, 12, 2048),
            "sheared-llama-1.3b": size(24, 2048, 16, 5504, context_length=4096),
            "sheared-llama-2.7b": size(32, 2560, 20, 6912, context_length=4096),
            "tinyllama-1.1b": size(22, 2048, 32, 5632, 4),
            "prem-1b": size(22, 2048, 32, 5632, 4, context_length=8192),
            "prem-1b-chat": size(22, 2048, 32, 5632, 4, context_length=8192, vocab_size=32004),
            "deepseek-coder-1.3b": DEEPSEEK_CODER,
            "prem-1b-sql": DEEPSEEK_CODER,
        },
    ),
    "llama-3.2": (
        {"vocab_size": 128256, "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE, "context_length": 131072},
        {"llama-3.2-1b": size(16, 2048, 32, 8192, 8), "llama-3.2-3b": size(28, 3072, 24, 8192, 8)},
    ),
    "mistral": (
        {**LLAMA, "window": 4096, "layer_pattern": ("local",)},
        {
            "mistral-7b-v0.1": size(32, 4096, 32, 14336, 8, context_length=32768),
            "mistral-7b-v0.3": size(
                *(32, 4096, 32, 14336, 8),
                vocab_size=32768,
                context_length=32768,
                rope_theta=1e6,
                window=None,
                layer_pattern=("global",),
            ),
            "h2o-danube-1.8b": size(24, 2560, 32, 6912, 8, context_length=16384),
        },
    ),
    "h2o-danube3": (
        {**LLAMA, "rope_theta": 1e5, "context_length": 8192},
        {"h2o-danube3-500m": size(16, 1536, 16, 4096, 8), "h2o-danube3-4b": size(24, 3840, 32, 10240, 8)},
    ),
    "mobilellm": (
        {"vocab_size": 32000},
        {
            "mobilellm-125m": size(30, 576, 9, 1536, 3),
            "mobilellm-125m-layer-share": size(30, 576, 9, 1536, 3, block_repeats=2),
            "mobilellm-350m": size(32, 960, 15, 2560, 5),
            "mobilellm-350m-layer-share": size(32, 960, 15, 2560, 5, block_repeats=2),
            "mobilellm-600m": size(40, 1152, 18, 3072, 6),
            "mobilellm-1b": size(54, 1280, 20, 3584, 5),
            "mobilellm-1.5b": size(54, 1600, 25, 4352, 5),
        },
    ),
    "smollm": (
        {"vocab_size": 49152},
        {
            "smollm-135m": size(30, 576, 9, 1536, 3),
            "smollm-360m": size(32, 960, 15, 2560, 5),
            "smollm-1.7b": size(24, 2048, 32, 8192),
        },
    ),
    "smollm2": (
        {"vocab_size": 49152, "rope_theta": 1e5, "context_length": 8192},
        {
            "smollm2-135m": size(30, 576, 9, 1536, 3, init_std=576**-0.5),
            "smollm2-360m": size(32, 960, 15, 2560, 5),
            "smollm2-1.7b": size(24, 2048, 32, 8192, rope_theta=1.3e5),
        },
    ),
    "smollm3": (
        {
            "vocab_size": 128256,
            "norm_eps": 1e-6,
            "rope_theta": 5e6,
            "rope_pattern": (True, True, True, False),
            "context_length": 65536,
        },
        {"smollm3-3b": size(36, 2048, 16, 11008, 4)},
    ),
    "qwen1.5": (
        {**QWEN, "qkv_bias": True, "tie_embeddings": False},
        {
            "qwen1.5-0.5b": size(24, 1024, 16, 2816, tie_embeddings=True),
            "qwen1.5-1.8b": size(24, 2048, 16, 5504),
            "qwen1.5-4b": size(40, 2560, 20, 6912),
        },
    ),
    "qwen2": (
        {**QWEN, "qkv_bias": True},
        {
            "qwen2-0.5b": size(24, 896, 14, 4864, 2, context_length=131072),
            "qwen2-1.5b": size(28, 1536, 12, 8960, 2, context_length=131072),
            "qwen2.5-0.5b": size(24, 896, 14, 4864, 2),
            "qwen2.5-1.5b": size(28, 1536, 12, 8960, 2),
            "qwen2.5-3b": size(36, 2048, 16, 11008, 2),
        },
    ),
    "qwen3": (
        {**QWEN, "head_dim": 128, "qk_norm": "head", "context_length": 40960},
        {
            "qwen3-0.6b": size(28, 1024, 16, 3072, 8),
            "qwen3-1.7b": size(28, 2048, 16, 6144, 8),
            "qwen3-4b": size(36, 2560, 32, 9728, 8),
        },
    ),
    "gemma": ({**GEMMA, "embedding_multiplier": 2048**0.5}, {"gemma-2b": size(18, 2048, 8, 16384, 1)}),
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
        {"gemma-2-2b": size(26, 2304, 8, 9216, 4)},
    ),
    "gemma-3": (
        {**GEMMA3, "vocab_size": 262144, "window": 512},
        {
            "gemma-3-270m": size(18, 640, 4, 2048, 1, embedding_multiplier=640**0.5),
            "gemma-3-1b": size(26, 1152, 4, 6912, 1, embedding_multiplier=1152**0.5),
        },
    ),
    "olmo-2": (
        {
            "vocab_size": 100352,
            "context_length": 4096,
            "norm_eps": 1e-6,
            "norm_placement": "output",
            "norm_scale_float32": True,
            "qk_norm": "full",
            "rope_theta": 5e5,
            "tie_embeddings": False,
        },
        {"olmo-2-1b": size(16, 2048, 16, 8192)},
    ),
    "openelm": (
        {"vocab_size": 32000, "norm_eps": 1e-6, "qk_norm": "head", "init_std": None},
        {
            "openelm-270m": openelm(16, 1280, 64),
            "openelm-450m": openelm(20, 1536, 64),
            "openelm-1.1b": openelm(28, 2048, 64),
            "openelm-3b": openelm(36, 3072, 128),
        },
    ),
    "minicpm": (
        {"context_length": 4096, "embedding_multiplier": 12.0, "init_std": 0.1},
        {
            "minicpm-1b": minicpm(52, 1536, 24, 3840, 8, vocab_size=73440),
            "minicpm-2b": minicpm(40, 2304, 36, 5760, 36, vocab_size=122753),
        },
    ),
    "granite": (
        {
            "vocab_size": 49155,
            "context_length": 131072,
            "rope_theta": 5e6,
            "embedding_multiplier": 12.0,
            "attention_scale": 1 / 64,
            "residual_multiplier": 0.22,
            "logit_divisor": 8.0,
        },
        {"granite-3.1-2b": size(40, 2048, 32, 8192, 8)},
    ),
}
