"""What a decoder-only transformer is, as one frozen dataclass of orthogonal switches.

Every family of the field (`families.py`) is a setting of these switches; nothing here says how a network is run
(see `execution.py`) or what it costs (see `counting.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from slmjax.errors import UserError

NORMS = ("rms", "layer")
NORM_PLACEMENTS = ("pre", "output", "sandwich", "post")
POSITIONS = ("rope", "learned", "alibi", "none")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
QK_NORMS = ("none", "head", "full")
ROPE_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pretraining (see `positions.py` for the equations)."""

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
        if self.kind not in ROPE_SCALINGS:
            raise UserError(f"model.rope_scaling.kind is {self.kind!r}; choose one of {', '.join(ROPE_SCALINGS)}.")
        if self.kind not in ("linear",) and self.original_context_length <= 0:
            raise UserError(
                f"model.rope_scaling.original_context_length={self.original_context_length} must be above 0 "
                f"for kind={self.kind!r}."
            )
        if self.factor <= 0:
            raise UserError(f"model.rope_scaling.factor={self.factor} must be above 0.")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise UserError(
                f"model.rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
                f"high_freq_factor={self.high_freq_factor}."
            )
        for name in ("short_factor", "long_factor"):  # lists come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from one layer to the next. Two layers with equal specs can share one compiled body."""

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
    num_kv_heads: int | tuple[int, ...] = 0  # G; 0: as many as num_heads
    head_dim: int = 0  # K; 0: embed_dim / num_heads
    context_length: int = 2048

    # attention
    qkv_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: str = "none"  # "head": over K of each head, "full": over H*K before the split
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
        self._validate()

    def _validate(self):
        for name in ("vocab_size", "num_layers", "embed_dim", "head_dim", "context_length", "block_repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1.")
        for name, known in (
            ("norm", NORMS),
            ("norm_placement", NORM_PLACEMENTS),
            ("position", POSITIONS),
            ("activation", ACTIVATIONS),
            ("qk_norm", QK_NORMS),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"model.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        for name in ("num_heads", "num_kv_heads", "ffn_dim"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.num_layers:
                raise UserError(
                    f"model.{name} lists {len(value)} layers but model.num_layers is {self.num_layers}: "
                    "give one number for all layers or one for each."
                )
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise UserError(f"model.{name}={value} must be at least 1.")
        if set(self.layer_pattern) - {"local", "global"} or not self.layer_pattern:
            raise UserError(
                f"model.layer_pattern={self.layer_pattern} must list 'local' and 'global', at least one of them."
            )
        if not self.rope_pattern:
            raise UserError("model.rope_pattern=() must list true and false, at least one of them.")
        for i, spec in enumerate(self.layers):
            if spec.num_heads % spec.num_kv_heads:
                raise UserError(
                    f"model.num_heads={spec.num_heads} is not a multiple of model.num_kv_heads={spec.num_kv_heads} "
                    f"(layer {i}): each key/value head must serve the same number of query heads."
                )
        if "local" in self.layer_pattern and not (self.window and self.window > 0):
            raise UserError("model.layer_pattern has local layers: set model.window to a number of tokens above 0.")
        if not 0 < self.rope_fraction <= 1:
            raise UserError(f"model.rope_fraction={self.rope_fraction} must be above 0 and at most 1.")
        if self.position == "rope" and (self.rotary_dim % 2 or not self.rotary_dim):
            raise UserError(
                f"model.rope_fraction={self.rope_fraction} of model.head_dim={self.head_dim} is {self.rotary_dim}: "
                "rotary embeddings need an even number of dimensions."
            )
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "longrope":
            for name in ("short_factor", "long_factor"):
                if len(getattr(scaling, name)) != self.rotary_dim // 2:
                    raise UserError(
                        f"model.rope_scaling.{name} lists {len(getattr(scaling, name))} numbers: "
                        f"it needs {self.rotary_dim // 2}, one for each pair of rotated dimensions."
                    )
        if self.shared_norm and not self.parallel_residual:
            raise UserError("model.shared_norm=True needs model.parallel_residual=True.")
        if self.parallel_residual and self.norm_placement != "pre":
            raise UserError("model.parallel_residual=True needs model.norm_placement='pre'.")

    @property
    def rotary_dim(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.head_dim * self.rope_fraction)

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
