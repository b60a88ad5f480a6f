"""`ModelConfig`: a decoder-only transformer as one frozen dataclass of orthogonal switches.

Every family of the field (`families/`) is a setting of these switches; nothing here says how a network is run
(see `execution.py`) or what it costs (see `counting.py`). A config is read and checked without importing jax.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slmjax.errors import UserError
from slmjax.models.config_checks import check_model, check_rope_scaling


@dataclass(frozen=True)
class RopeScaling:
    """The stretching of rotary frequencies beyond the length of pretraining (`positions.py` has the equations)."""

    kind: str
    factor: float = 1.0
    original_context_length: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn, longrope; None: the paper's formula
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()  # longrope

    def __post_init__(self):
        check_rope_scaling(self)
        for name in ("short_factor", "long_factor"):  # lists come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def magnitude(self) -> float:
        """Factor on cos and sin, which keeps attention's temperature: `attention_factor`, else the paper's formula."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn" and self.factor > 1:
            return 0.1 * math.log(self.factor) + 1.0
        if self.kind == "longrope" and self.factor > 1:  # as Phi-3 has it
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context_length))
        return 1.0


@dataclass(frozen=True)
class LayerSpec:
    """The settings that may differ between layers. Two layers with equal specs can share one compiled body."""

    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    window: int | None  # keys j with i - window < j <= i are visible; None: all j <= i
    rope: int | None  # index into ModelConfig.ropes; None: no rotary embedding in this layer


@dataclass(frozen=True)
class Segment:
    """`repeats` copies of a `period` of layers, scanned: the compiler sees the period once."""

    period: tuple[LayerSpec, ...]
    repeats: int


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one network. Letters in comments are those of the shape names in the code."""

    vocab_size: int  # V
    num_layers: int  # L
    embed_dim: int  # D
    num_heads: int | tuple[int, ...]  # H, one number or one a layer
    ffn_dim: int | tuple[int, ...]  # F, one number or one a layer
    # None (or 0, as older files have it) is filled in from the other sizes when the config is made.
    num_kv_heads: Any = None  # G, an int or one a layer; None: as many as num_heads
    head_dim: Any = None  # K, an int; None: embed_dim / num_heads
    context_length: int = 2048

    # attention
    qkv_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: str = "none"  # over K of each head: "head", or "heads" with gains of its own; "full": over H*K
    qk_norm_after_rope: bool = False  # with qk_norm="head": after the rotation (Hunyuan)
    attention_scale: float | None = None  # None: K ** -0.5
    attention_softcap: float | None = None
    clip_qkv: float | None = None
    window: int | None = None  # of the layers that `layer_pattern` calls local
    layer_pattern: tuple[str, ...] = ("global",)  # "local" or "global", repeated over the layers

    # positions
    position: str = "rope"
    rope_theta: float = 10_000.0
    rope_theta_local: float | None = None  # of local layers; None: rope_theta, with its scaling
    rope_fraction: float = 1.0  # share of head_dim that is rotated
    rope_scaling: RopeScaling | None = None
    rope_pattern: tuple[bool, ...] = (True,)  # which layers rotate at all, repeated over the layers (SmolLM3's NoPE)
    position_offset: int = 0  # learned table: row of position 0 (OPT: 2)
    alibi_scaled: bool = False  # Falcon: the bias is rounded to bfloat16 and multiplied by the attention scale

    # feed-forward
    activation: str = "silu"
    gated: bool = True
    ffn_bias: bool = False

    # normalization
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_scale: bool = True  # False: non-parametric (OLMo-1)
    norm_bias: bool = False
    norm_unit_offset: bool = False  # Gemma: multiply by (1 + scale)
    norm_scale_float32: bool = False  # multiply by the scale before rounding to the compute dtype (OLMo-2, Gemma)
    norm_placement: str = "pre"  # "output": on each sub-layer's output (OLMo-2), "post": after the sum (OPT-350M)
    parallel_residual: bool = False  # x + attention(n1(x)) + ffn(n2(x))
    shared_norm: bool = False  # with parallel_residual: n1 and n2 are one (Phi, Falcon-7B)
    embedding_norm: bool = False  # BLOOM
    final_norm: bool = True

    # embedding and head
    tie_embeddings: bool = True
    head_bias: bool = False
    embedding_projection_dim: int | None = None  # OPT-350M: width of the token table when it is not embed_dim
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float | None = None

    block_repeats: int = 1  # MobileLLM: each block is run this many times in a row
    init_std: float | None = 0.02  # None: fan_in ** -0.5
    init_scale_residual: bool = True  # output projections of each block divided by sqrt(2 L) (GPT-2)
    alibi_max_bias: float = 8.0  # slopes of n heads: 2 ** (-alibi_max_bias * i / n) for i = 1 to n (MPT)

    def __post_init__(self):
        as_tuple = {"num_heads", "ffn_dim", "num_kv_heads", "layer_pattern", "rope_pattern"}
        for name in as_tuple:
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if not self.num_kv_heads:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if not self.head_dim:
            if not isinstance(self.num_heads, int) or self.num_heads < 1 or self.embed_dim % self.num_heads:
                raise UserError(
                    f"model.embed_dim={self.embed_dim} is not a multiple of model.num_heads={self.num_heads}: "
                    "change one of them or set model.head_dim."
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        check_model(self)

    @property
    def rotary_dim(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def softmax_scale(self) -> float:
        """Factor on the products of queries and keys: `attention_scale`, or K ** -0.5 where that is None."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def table_dim(self) -> int:
        """E, the width of the token table and of what the head multiplies: embed_dim unless there is a projection."""
        return self.embedding_projection_dim or self.embed_dim

    @property
    def extended_context_length(self) -> int:
        """Tokens that a text may come to: `context_length`, or what the rope's scaling makes of it where that is more.

        Published configs give the one or the other: YaRN's recipe leaves `context_length` as it was trained, Llama 3.1
        and Phi-3 give the extended length.
        """
        scaling = self.rope_scaling
        if self.position != "rope" or scaling is None:
            return self.context_length
        original = scaling.original_context_length or self.context_length
        if scaling.kind in ("llama3", "longrope") and self.context_length > original:
            return self.context_length
        return max(self.context_length, int(scaling.factor * original))

    @cached_property
    def ropes(self) -> tuple[tuple[float, RopeScaling | None], ...]:
        """The distinct rotary tables of the network: (theta, scaling); `LayerSpec.rope` indexes them."""
        if self.position != "rope":
            return ()
        tables = [(self.rope_theta, self.rope_scaling)]
        if self.rope_theta_local is not None:
            tables.append((self.rope_theta_local, None))
        return tuple(tables)

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """One spec a layer, in order."""

        def at(value, i):
            return value[i] if isinstance(value, tuple) else value

        specs = []
        for i in range(self.num_layers):
            local = self.layer_pattern[i % len(self.layer_pattern)] == "local"
            rotates = self.position == "rope" and self.rope_pattern[i % len(self.rope_pattern)]
            specs.append(
                LayerSpec(
                    num_heads=at(self.num_heads, i),
                    num_kv_heads=at(self.num_kv_heads, i),
                    ffn_dim=at(self.ffn_dim, i),
                    window=self.window if local else None,
                    rope=(1 if local and self.rope_theta_local is not None else 0) if rotates else None,
                )
            )
        return tuple(specs)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Layers grouped into repeating segments: greedily the shortest period that covers the most layers."""
        layers, segments, start = self.layers, [], 0
        while start < len(layers):
            best = Segment(layers[start : start + 1], 1)
            for size in range(1, (len(layers) - start) // 2 + 1):
                period, repeats = layers[start : start + size], 1
                while layers[start + repeats * size : start + (repeats + 1) * size] == period:
                    repeats += 1
                if repeats > 1 and size * repeats > len(best.period) * best.repeats:
                    best = Segment(period, repeats)
            segments.append(best)
            start += len(best.period) * best.repeats
        return tuple(segments)

    def to_dict(self) -> dict:
        """Plain JSON-able values; `ModelConfig(**d)` gives the same config back."""
        return dataclasses.asdict(self)

    def differences(
        self, other: ModelConfig, *, ignore: Iterable[str] = (), rel_tol: float = 0.0
    ) -> dict[str, tuple[Any, Any]]:
        """The fields in which two configs describe different networks -> (ours, theirs); {} when they are the same.

        Defaults count by their values, and what may differ by layer counts layer by layer, so that two spellings of
        one network do not differ: patterns, windows and thetas stand under `window`, `rope_theta` and `rope_scaling`,
        one value where all layers agree. How parameters begin is not compared. ignore: fields that may differ.
        rel_tol: relative tolerance of floats, for files that round them.
        """
        ours, theirs = _function(self), _function(other)
        ignore = set(ignore)
        return {
            name: (value, theirs[name])
            for name, value in ours.items()
            if name not in ignore and not _close(value, theirs[name], rel_tol)
        }


def rope_fraction(rotary_dim: int, head_dim: int) -> float:
    """The `ModelConfig.rope_fraction` by which so many dimensions of each head are rotated, and not one less."""
    fraction = rotary_dim / max(head_dim, 1)
    return fraction if int(head_dim * fraction) == rotary_dim else math.nextafter(fraction, math.inf)


def _function(config: ModelConfig) -> dict[str, Any]:
    """The fields on which the network's function depends, spelled out as `ModelConfig.differences` says."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in ("init_std", "init_scale_residual", "layer_pattern", "rope_pattern", "rope_theta_local"):
        del fields[name]
    tables = [None if spec.rope is None else config.ropes[spec.rope] for spec in config.layers]
    by_layer = {
        **{name: [getattr(spec, name) for spec in config.layers] for name in ("num_heads", "num_kv_heads", "ffn_dim")},
        "window": [spec.window for spec in config.layers],
        "rope_theta": [None if table is None else table[0] for table in tables],
        "rope_scaling": [None if table is None else _explicit(table[1]) for table in tables],
    }
    return {
        **fields,
        **{
            name: values[0] if values.count(values[0]) == len(values) else tuple(values)
            for name, values in by_layer.items()
        },
        "rope_fraction": config.rotary_dim / config.head_dim if any(tables) else None,
        "qk_norm_after_rope": config.qk_norm_after_rope and any(tables),
        "attention_scale": config.softmax_scale,
        "embedding_projection_dim": config.table_dim,
        "position_offset": config.position_offset if config.position == "learned" else 0,
        "alibi_max_bias": config.alibi_max_bias if config.position == "alibi" else None,
    }


def _explicit(scaling: RopeScaling | None) -> RopeScaling | None:
    return None if scaling is None else dataclasses.replace(scaling, attention_factor=scaling.magnitude)


def _close(a: Any, b: Any, rel_tol: float) -> bool:
    if isinstance(a, RopeScaling) and isinstance(b, RopeScaling):
        a, b = dataclasses.astuple(a), dataclasses.astuple(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_close(x, y, rel_tol) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float | int) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=rel_tol)
    return bool(a == b)
