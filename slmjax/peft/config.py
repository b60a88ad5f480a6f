"""The config section `peft`: which method, its numbers, and the model that it starts from.

Nothing here needs an array, so a mistyped key is told before jax is imported; what only the network can tell (targets
that match nothing, layers that are not there) is checked where a method is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from slmjax.errors import UserError, did_you_mean
from slmjax.models.activations import ACTIVATIONS

ALL_LINEAR = "all-linear"  # as a target: every weight product of the layers
# kind -> sub-layers, reduction, activation, scale: those of AdapterHub's configurations of these names
ADAPTER_KINDS: dict[str, tuple[tuple[str, ...], int, str, float]] = {
    "houlsby": (("attention", "feedforward"), 16, "silu", 1.0),
    "pfeiffer": (("feedforward",), 16, "relu", 1.0),
    "parallel": (("feedforward",), 2, "relu", 4.0),
}
INITS = ("vocabulary", "text", "random", "zero")


@dataclass(frozen=True)
class LoraConfig:
    """Which weights get a low-rank term, and how it starts. Patterns are those of `targets.choose`."""

    r: int = 16
    alpha: float = 32.0  # the term is scaled by alpha / r
    dropout: float = 0.0  # of what enters A
    targets: tuple[str, ...] = (ALL_LINEAR,)
    exclude: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()  # only these layers; (): all
    rank_pattern: tuple[tuple[str, int], ...] = ()  # (pattern, rank) pairs, the last match counts
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rslora: bool = False  # scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)
    dora: bool = False  # learn each output's magnitude apart (Liu et al. 2024, arXiv:2402.09353)
    init: str = "kaiming"  # kaiming, gaussian, or pissa: the base's principal part (Meng et al. 2024, arXiv:2404.02948)
    loraplus_lr_ratio: float = 1.0  # learning rate of B over that of A (LoRA+, arXiv:2402.12354, uses 16)

    def __post_init__(self):
        for name in ("rank_pattern", "alpha_pattern"):  # lists come from JSON
            object.__setattr__(self, name, tuple(tuple(pair) for pair in getattr(self, name)))
        for rank in (self.r, *(rank for _, rank in self.rank_pattern)):
            if rank < 1:
                raise UserError(f"peft.lora has a rank of {rank}: it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"peft.lora.dropout={self.dropout} must be at least 0 and below 1.")
        if self.init not in ("kaiming", "gaussian", "pissa"):
            raise UserError(f"peft.lora.init is {self.init!r}; choose one of kaiming, gaussian, pissa.")
        if not self.loraplus_lr_ratio > 0:
            raise UserError(f"peft.lora.loraplus_lr_ratio={self.loraplus_lr_ratio} must be above 0.")


@dataclass(frozen=True)
class AdapterConfig:
    """Which kind, and its sizes where they are not the kind's own."""

    kind: str = "pfeiffer"  # houlsby, pfeiffer, parallel
    reduction_factor: int = 0  # the bottleneck is embed_dim / reduction_factor; 0: the kind's own (16, 16, 2)
    activation: str = ""  # "": the kind's own (silu, relu, relu)
    scale: float = 0.0  # 0: the kind's own (1, 1, 4)

    def __post_init__(self):
        if self.kind not in ADAPTER_KINDS:
            raise UserError(f"peft.adapter.kind is {self.kind!r}; choose one of {', '.join(ADAPTER_KINDS)}.")
        _, reduction, activation, scale = ADAPTER_KINDS[self.kind]
        for name, value in (("reduction_factor", reduction), ("activation", activation), ("scale", scale)):
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.activation not in ACTIVATIONS:
            raise UserError(f"peft.adapter.activation is {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
        if self.reduction_factor < 1:
            raise UserError(f"peft.adapter.reduction_factor={self.reduction_factor} must be at least 1.")


@dataclass(frozen=True)
class IA3Config:
    """Which products are scaled: their outputs, or, for those also in `feedforward`, their inputs."""

    targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    feedforward: tuple[str, ...] = ("down_proj",)


@dataclass(frozen=True)
class PrefixConfig:
    """n keys and values in each layer; they start as those of real tokens, from which training is fastest."""

    num_virtual_tokens: int = 20
    init: str = "vocabulary"  # of random tokens' keys and values, "text": of init_text's; "random": normal; "zero"
    init_text: str = ""
    projection: bool = False  # learn them through an MLP (which starts at random); False is P-tuning v2
    hidden_size: int = 0  # of the MLP; 0: embed_dim

    def __post_init__(self):
        _check("prefix", self.num_virtual_tokens, self.init, self.init_text)


@dataclass(frozen=True)
class PromptConfig:
    """n input vectors; they start as real tokens' (arXiv:2104.08691, section 3.2: random ones do much worse)."""

    num_virtual_tokens: int = 20
    init: str = "vocabulary"  # vectors of random tokens, "text": of init_text's; "random": normal; "zero"
    init_text: str = ""

    def __post_init__(self):
        _check("prompt", self.num_virtual_tokens, self.init, self.init_text)


@dataclass(frozen=True)
class PTuningConfig:
    """n input vectors that an encoder makes of n learned ones."""

    num_virtual_tokens: int = 20
    encoder: str = "mlp"  # mlp: three layers with ReLU; lstm: two bidirectional layers and two of an MLP
    hidden_size: int = 0  # 0: embed_dim

    def __post_init__(self):
        _check("p_tuning", self.num_virtual_tokens, "random", "")
        if self.encoder not in ("mlp", "lstm"):
            raise UserError(f"peft.p_tuning.encoder is {self.encoder!r}; choose mlp or lstm.")


def _check(section: str, num_virtual_tokens: int, init: str, text: str) -> None:
    if num_virtual_tokens < 1:
        raise UserError(f"peft.{section}.num_virtual_tokens={num_virtual_tokens} must be at least 1.")
    if init not in INITS:
        raise UserError(f"peft.{section}.init is {init!r}; choose one of {', '.join(INITS)}.")
    if (init == "text") != bool(text):
        raise UserError(f"peft.{section}: init='text' and init_text go together; set both or none.")


@dataclass(frozen=True)
class FreezeConfig:
    """Layers that are trained besides what `peft.train` names; all else is frozen."""

    first_layers: int = 0  # train the first so many layers
    last_layers: int = 0  # train the last so many layers

    def __post_init__(self):
        if self.first_layers < 0 or self.last_layers < 0:
            raise UserError("peft.freeze.first_layers and peft.freeze.last_layers must be 0 (none) or above.")


# Keys of earlier versions, which are still read -> those of today.
OLD_KEYS = {
    "lora.plus_ratio": "lora.loraplus_lr_ratio",
    "adapter.reduction": "adapter.reduction_factor",
    "prefix.num_tokens": "prefix.num_virtual_tokens",
    "prompt.num_tokens": "prompt.num_virtual_tokens",
    "p_tuning.num_tokens": "p_tuning.num_virtual_tokens",
    "freeze.train": "train",
}
_SECTIONS: dict[str, Any] = {
    "lora": LoraConfig,
    "adapter": AdapterConfig,
    "prefix": PrefixConfig,
    "prompt": PromptConfig,
    "p_tuning": PTuningConfig,
    "ia3": IA3Config,
    "freeze": FreezeConfig,
}
METHODS = ("full", *_SECTIONS)
MERGEABLE = ("full", "lora", "ia3", "freeze")  # what these learn can be worked into the weights


@dataclass(frozen=True)
class PeftConfig:
    """How a network is fine-tuned. The default trains all of it; only the chosen method's section counts."""

    method: str = "full"
    base: str = ""  # path of the model that is fine-tuned; "": begin from random parameters
    fingerprint: str = ""  # of the base's parameters; filled in when a run begins, refused when it changes
    train: tuple[str, ...] = ()  # base arrays that are trained too: "lm_head/kernel", "layers/[0-3]/attention/.*"
    quantize: str = ""  # of the frozen base's weight products: int8, int4 or nf4; "": as they are
    expand: int = 0  # so many new layers, spread over the base's and the identity at first; with method=freeze
    new_layers: tuple[int, ...] = ()  # the numbers of those; filled in when a run begins
    layer_decay: float = 1.0  # the learning rate of layer i of L is multiplied by this to the power L - 1 - i
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    p_tuning: PTuningConfig = field(default_factory=PTuningConfig)
    ia3: IA3Config = field(default_factory=IA3Config)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)

    def __post_init__(self):
        for name, cls in _SECTIONS.items():
            if isinstance(value := getattr(self, name), Mapping):  # from a config file or JSON
                object.__setattr__(self, name, self._read(name, cls, value))
        if self.method not in METHODS:
            raise UserError(f"peft.method is {self.method!r}; choose one of {', '.join(METHODS)}.")
        if self.quantize not in ("", "int8", "int4", "nf4"):
            raise UserError(f"peft.quantize is {self.quantize!r}; choose one of int8, int4, nf4, or '' for none.")
        if self.quantize and self.method in ("full", "freeze"):
            raise UserError(f"peft.quantize={self.quantize} needs a base that peft.method={self.method} leaves frozen.")
        if self.expand < 0 or (self.expand and self.method != "freeze"):
            raise UserError(
                f"peft.expand={self.expand} adds layers that are trained while the base's are frozen: it must be 0 "
                "(none) or above, with peft.method=freeze."
            )
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"peft.layer_decay={self.layer_decay} must be above 0 and at most 1.")
        if self.method == "full" and self.train:
            raise UserError("peft.train has no effect with peft.method=full, which trains everything: remove it.")

    def _read(self, section: str, cls: Any, values: Mapping[str, Any]) -> Any:
        known = [f.name for f in fields(cls)]
        given: dict[str, Any] = {}
        for key, value in values.items():
            value = tuple(value) if isinstance(value, list) else value
            place, _, name = OLD_KEYS.get(f"{section}.{key}", f"{section}.{key}").rpartition(".")
            if place and name not in known:
                raise UserError(f"The config has an unknown key peft.{section}.{key}; {did_you_mean(key, known)}")
            if not place:  # freeze.train, which only its method looked at
                value = value if self.method == section else ()
                object.__setattr__(self, name, tuple(dict.fromkeys((*getattr(self, name), *value))))
            elif given.setdefault(name, value) != value:
                raise UserError(f"peft.{section}.{name} is given twice, once by an old name: set it once.")
        return cls(**given)
