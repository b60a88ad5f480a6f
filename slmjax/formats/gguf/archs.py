"""GGUF's architectures as data: what each fixes of a network, and how llama.cpp lays its tensors out.

What a file says itself (sizes, scales, which biases are there) is read by `architectures.py`. Activations are those of
the released models: where they are an exact GELU (falcon, gptneox), llama.cpp takes the approximation by tanh. Source:
llama.cpp's loader and its converter from Hugging Face.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from slmjax.models.families.switches import BIASES, LAYER_NORM, PLAIN, Switches

GEMMA: Switches = {"norm_unit_offset": True, "norm_scale_float32": True, "activation": "gelu_tanh"}
COHERE: Switches = {"norm": "layer", "parallel_residual": True, "shared_norm": True}
LLAMA_BIASES = tuple(BIASES)


def _no_scales(dim: int, layers: int) -> Switches:
    return {}


def _gemma_scales(dim: int, layers: int) -> Switches:
    """Gemma's multiplier has no key at all."""
    return {"embedding_multiplier": math.sqrt(dim)}


def _gemma2_scales(dim: int, layers: int) -> Switches:
    return {**_gemma_scales(dim, layers), "attention_softcap": 50.0, "logit_softcap": 30.0}


def _minicpm_scales(dim: int, layers: int) -> Switches:
    scales = {"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / math.sqrt(layers)}
    return {**scales, "logit_divisor": dim / 256}


@dataclass(frozen=True)
class Arch:
    """One value of general.architecture."""

    name: str
    switches: Switches  # what no key says; everything else is ModelConfig's default
    optional_biases: tuple[str, ...] = ()  # there where their tensors are
    head: str = "optional"  # output.weight: "required", "optional" (absent: tied), or "never"
    interleaved: bool = False  # rotates pairs (2i, 2i + 1): rows of q and k are permuted
    partial_rope: bool = False  # may rotate a part of each head
    fused_qkv: bool = False
    fused_gate: bool = False  # ffn_up holds the gate, then up
    own_head_dim: bool = False  # attention.key_length may differ from embed_dim / num_heads
    per_layer: bool = False  # heads and feed-forward widths may differ from layer to layer
    scales: tuple[str, ...] = ()  # fields of ModelConfig with a key of their own (see architectures.py)
    local_period: int = 0  # with a window, layers repeat (period - 1) local, 1 global; 1: all local; 0: no window
    default_scales: Callable[[int, int], Switches] = _no_scales  # (embed_dim, layers) -> what no key of a file says
    depth_scaled_by_heads: int = 0  # layers of the variant whose attention is scaled by (embed_dim / num_heads) ** -0.5
    default_window: int = 0  # where attention.sliding_window says nothing
    has_local_keys: bool = False  # sliding_window_pattern and rope.freq_base_swa; of the others llama.cpp reads neither
    reads_pattern: bool = False  # sliding_window_pattern, which converters write: a period, or a boolean for each layer
    local_unscaled: bool = False  # layers with a window rotate at the same theta, without its scaling (OLMo-3)
    global_unrotated: bool = False  # where some layers have a window, the others do not rotate (EXAONE-4)
    parallel_key: str = ""  # says whether attention and feed-forward read the same input
    norms: tuple[tuple[str, str], ...] = ()  # tensor -> ours, where they are not the usual ones and not shared
    shared_without: str = ""  # the tensor without which attention and feed-forward share one norm
    parallel_if_shared: bool = False  # and read the same input then, and only then
    rope_scalings: tuple[str, ...] = ("linear", "yarn")  # what is written; whatever a file has is read
    kv_heads: int = 0  # above 0: only networks of so many key/value heads are written so
    multiplies_logits: bool = False  # logit_scale is a factor and not a divisor


# On writing the first that expresses the network wins: from the particular to the general.
ARCHS: tuple[Arch, ...] = (
    Arch("qwen2", {"qkv_bias": True}),
    Arch("qwen3", {"qk_norm": "head"}, own_head_dim=True),
    Arch("gemma", GEMMA, head="never", own_head_dim=True, default_scales=_gemma_scales),
    Arch(
        "gemma2",
        {**GEMMA, "norm_placement": "sandwich"},
        head="never",
        own_head_dim=True,
        scales=("attention_softcap", "logit_softcap"),
        default_scales=_gemma2_scales,
        depth_scaled_by_heads=46,
        local_period=2,
        default_window=4096,
    ),
    Arch(
        "gemma3",
        {**GEMMA, "norm_placement": "sandwich", "qk_norm": "head"},
        own_head_dim=True,
        default_scales=_gemma_scales,
        depth_scaled_by_heads=62,
        local_period=6,
        has_local_keys=True,
        rope_scalings=("linear",),
    ),
    Arch(
        "olmo2",  # and OLMo-3, with windows
        {"norm_placement": "output", "norm_scale_float32": True, "qk_norm": "full"},
        head="required",
        local_period=4,
        reads_pattern=True,
        local_unscaled=True,
    ),
    Arch(
        "exaone4",
        {"norm_placement": "output", "qk_norm": "head"},
        own_head_dim=True,
        local_period=4,
        reads_pattern=True,
        global_unrotated=True,
        rope_scalings=("linear", "llama3", "yarn"),
    ),
    Arch("hunyuan-dense", {"qk_norm": "head", "qk_norm_after_rope": True}, own_head_dim=True),
    Arch(
        "openelm",
        {"qk_norm": "head"},
        head="never",
        fused_qkv=True,
        own_head_dim=True,
        per_layer=True,
        rope_scalings=(),
    ),
    Arch(
        "llama",
        {},
        LLAMA_BIASES,
        interleaved=True,
        own_head_dim=True,
        local_period=1,
        rope_scalings=("linear", "llama3", "yarn"),
    ),
    Arch(
        "smollm3",
        {"rope_pattern": (True, True, True, False)},
        LLAMA_BIASES,
        interleaved=True,
        own_head_dim=True,
    ),
    Arch("phi3", {}, fused_qkv=True, fused_gate=True, local_period=1, rope_scalings=("longrope",), partial_rope=True),
    Arch(
        "minicpm",
        {},
        LLAMA_BIASES,
        interleaved=True,
        own_head_dim=True,
        scales=("embedding_multiplier", "residual_multiplier", "logit_divisor"),
        default_scales=_minicpm_scales,
        rope_scalings=("linear", "yarn", "longrope"),
    ),
    Arch(
        "granite",
        {},
        LLAMA_BIASES,
        interleaved=True,
        own_head_dim=True,
        scales=("embedding_multiplier", "residual_multiplier", "logit_divisor", "attention_scale"),
    ),
    Arch("starcoder", {**PLAIN, "position": "learned", "activation": "gelu_tanh"}, fused_qkv=True, kv_heads=1),
    Arch("gpt2", {**PLAIN, "position": "learned", "activation": "gelu_tanh"}, fused_qkv=True),
    Arch(
        "bloom",
        {**PLAIN, "position": "alibi", "activation": "gelu_tanh", "embedding_norm": True},
        fused_qkv=True,
    ),
    Arch(
        "falcon",
        {**LAYER_NORM, "gated": False, "activation": "gelu", "parallel_residual": True},
        fused_qkv=True,
        # Falcon-40B: what the older files called attn_norm feeds the feed-forward network.
        norms=(("attn_norm_2", "attention_norm"), ("attn_norm", "ffn_norm")),
        shared_without="blk.0.attn_norm_2.weight",
    ),
    Arch(
        "gptneox",
        {**PLAIN, "activation": "gelu"},
        head="required",
        fused_qkv=True,
        partial_rope=True,
        parallel_key="use_parallel_residual",
    ),
    Arch(
        "phi2",
        {**PLAIN, "activation": "gelu_tanh", "parallel_residual": True, "shared_norm": True, "head_bias": True},
        head="required",
        fused_qkv=True,
        partial_rope=True,
    ),
    Arch("olmo", {"norm": "layer", "norm_scale": False}, interleaved=True, scales=("clip_qkv",)),
    Arch(
        "stablelm",
        LAYER_NORM,
        ("qkv_bias",),
        head="required",
        partial_rope=True,
        shared_without="blk.0.ffn_norm.weight",
        parallel_if_shared=True,
    ),
    Arch(
        "nemotron",
        {**LAYER_NORM, "norm_unit_offset": True, "activation": "relu2", "gated": False},
        LLAMA_BIASES,
        head="required",
        own_head_dim=True,
        partial_rope=True,
    ),
    Arch("starcoder2", {**PLAIN, "activation": "gelu_tanh"}, local_period=1),
    Arch(
        "mpt",
        {"norm": "layer", "gated": False, "activation": "gelu", "position": "alibi"},
        fused_qkv=True,
        scales=("clip_qkv", "alibi_max_bias"),
    ),
    Arch(
        "glm4",
        {"norm_placement": "sandwich"},
        ("qkv_bias",),
        interleaved=True,
        partial_rope=True,
        fused_gate=True,
        own_head_dim=True,
    ),
    Arch("chatglm", {}, ("qkv_bias",), interleaved=True, partial_rope=True, fused_gate=True, own_head_dim=True),
    Arch(
        "command-r",
        COHERE,
        head="never",
        interleaved=True,
        scales=("logit_divisor",),
        multiplies_logits=True,
        rope_scalings=(),
    ),
    Arch(
        "cohere2",
        {**COHERE, "rope_pattern": (True, True, True, False)},
        head="never",
        interleaved=True,
        scales=("logit_divisor",),
        multiplies_logits=True,
        local_period=4,
        rope_scalings=(),
    ),
)
# Architectures that are read; their networks are written as an equal one of those above.
EQUAL: tuple[Arch, ...] = (
    Arch("internlm2", {}, LLAMA_BIASES, head="required", interleaved=True),
    Arch("ernie4_5", {}, LLAMA_BIASES, interleaved=True, own_head_dim=True),
)
BY_NAME = {arch.name: arch for arch in (*ARCHS, *EQUAL)}
