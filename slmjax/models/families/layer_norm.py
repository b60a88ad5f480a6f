"""Families with LayerNorm: GPT-2 and its heirs, and later networks that kept it."""

from __future__ import annotations

from slmjax.models.families.shapes import Switches, size

LAYER_NORM: Switches = {"norm": "layer", "norm_bias": True}
BIASES: Switches = {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}
PLAIN: Switches = {**LAYER_NORM, **BIASES, "gated": False}  # the networks before LLaMA

# family -> (switches of the whole family, {model name: what the size adds})
FAMILIES: dict[str, tuple[Switches, dict[str, Switches]]] = {
    "gpt2": (
        {**PLAIN, "vocab_size": 50257, "context_length": 1024, "position": "learned", "activation": "gelu_tanh"},
        {
            "gpt2": size(12, 768, 12),
            "gpt2-medium": size(24, 1024, 16),
            "gpt2-large": size(36, 1280, 20),
            "gpt2-xl": size(48, 1600, 25),
        },
    ),
    "cerebras-gpt": (
        {**PLAIN, "vocab_size": 50257, "position": "learned", "activation": "gelu"},
        {
            "cerebras-gpt-111m": size(10, 768, 12),
            "cerebras-gpt-256m": size(14, 1088, 17),
            "cerebras-gpt-590m": size(18, 1536, 12),
            "cerebras-gpt-1.3b": size(24, 2048, 16),
            "cerebras-gpt-2.7b": size(32, 2560, 32),
        },
    ),
    "lamini-gpt": (  # GPT-2 with one more token, [PAD]
        {**PLAIN, "vocab_size": 50258, "context_length": 1024, "position": "learned", "activation": "gelu_tanh"},
        {
            "lamini-gpt-124m": size(12, 768, 12),
            "lamini-gpt-774m": size(36, 1280, 20),
            "lamini-gpt-1.5b": size(48, 1600, 25),
        },
    ),
    "lamini-cerebras": (
        {**PLAIN, "vocab_size": 50258, "position": "learned", "activation": "gelu"},
        {
            "lamini-cerebras-111m": size(10, 768, 12),
            "lamini-cerebras-256m": size(14, 1088, 17),
            "lamini-cerebras-590m": size(18, 1536, 12),
            "lamini-cerebras-1.3b": size(24, 2048, 16),
        },
    ),
    "opt": (
        {**PLAIN, "vocab_size": 50272, "position": "learned", "position_offset": 2, "activation": "relu"},
        {
            "opt-125m": size(12, 768, 12),
            "opt-350m": size(24, 1024, 16, embedding_projection_dim=512, norm_placement="post", final_norm=False),
            "opt-1.3b": size(24, 2048, 32),
            "opt-2.7b": size(32, 2560, 32),
        },
    ),
    # The paper's network has no biases; the released one has them, as it has its norms' gains.
    "galactica": (
        {**PLAIN, "vocab_size": 50000, "position": "learned", "position_offset": 2, "activation": "gelu"},
        {"galactica-125m": size(12, 768, 12), "galactica-1.3b": size(24, 2048, 32)},
    ),
    "bloom": (
        {**PLAIN, "vocab_size": 250880, "position": "alibi", "activation": "gelu_tanh", "embedding_norm": True},
        {
            "bloom-560m": size(24, 1024, 16),
            "bloom-1b1": size(24, 1536, 16),
            "bloom-1b7": size(24, 2048, 16),
            "bloom-3b": size(30, 2560, 32),
        },
    ),
    "falcon": (
        {**LAYER_NORM, "gated": False, "activation": "gelu"},
        {
            "falcon-rw-1b": size(24, 2048, 32, vocab_size=50304, position="alibi", alibi_scaled=True, **BIASES),
            "falcon-7b": size(32, 4544, 71, kv=1, vocab_size=65024, parallel_residual=True, shared_norm=True),
        },
    ),
    "pythia": (
        {
            **PLAIN,
            "vocab_size": 50304,
            "rope_fraction": 0.25,
            "activation": "gelu",
            "parallel_residual": True,
            "tie_embeddings": False,
        },
        {
            "pythia-14m": size(6, 128, 4),
            "pythia-70m": size(6, 512, 8),
            "pythia-160m": size(12, 768, 12),
            "pythia-410m": size(24, 1024, 16),
            "pythia-1b": size(16, 2048, 8),
            "pythia-1.4b": size(24, 2048, 16),
            "pythia-2.8b": size(32, 2560, 32),
        },
    ),
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
            "phi-1": size(24, 2048, 32),
            "phi-1.5": size(24, 2048, 32),
            "phi-2": size(32, 2560, 32, rope_fraction=0.4),
        },
    ),
    "olmo": (
        {"vocab_size": 50304, "norm": "layer", "norm_scale": False},
        {"olmo-1b": size(16, 2048, 16, 8192)},
    ),
    "dclm": (
        {"vocab_size": 50432, "norm": "layer", "qk_norm": "full", "tie_embeddings": False},
        {"dclm-1b": size(24, 2048, 16, 5632)},
    ),
    "stablelm": (
        {**LAYER_NORM, "rope_fraction": 0.25, "context_length": 4096, "tie_embeddings": False},
        {
            "stablelm-3b": size(32, 2560, 32, 6912, vocab_size=50304),
            "stablelm-2-1.6b": size(24, 2048, 32, 5632, vocab_size=100352, qkv_bias=True),
        },
    ),
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
        {"minitron-4b": size(32, 3072, 24, 9216, 8)},
    ),
}
