"""The config section `peft`: which method, its numbers, and the model that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from slmjax.errors import UserError
from slmjax.peft.methods.bottleneck import AdapterConfig
from slmjax.peft.methods.freezing import FreezeConfig
from slmjax.peft.methods.ia3 import IA3Config
from slmjax.peft.methods.lora import LoraConfig
from slmjax.peft.methods.prompts import PrefixConfig, PromptConfig, PTuningConfig

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
    train: tuple[str, ...] = ()  # base arrays that are trained wholly besides what the method adds ("lm_head/kernel")
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
            raise UserError("peft.train adds to a method that freezes the rest: with peft.method=full all is trained.")
        for name, cls in _SECTIONS.items():
            if isinstance(value := getattr(self, name), dict):  # from a config file or JSON
                object.__setattr__(self, name, _section(name, cls, value))


def _section(name: str, cls: Any, values: dict[str, Any]) -> Any:
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise UserError(f"The config has an unknown key peft.{name}.{key}; known are {', '.join(known)}.")
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
