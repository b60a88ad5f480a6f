"""The config section `peft`: which method, its numbers, and the model that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field

from slmjax.errors import UserError
from slmjax.peft.lora import LoraConfig

METHODS = ("full", "lora")


@dataclass(frozen=True)
class PeftConfig:
    """How a network is fine-tuned. The default trains all of it; only the chosen method's section counts."""

    method: str = "full"
    base: str = ""  # path of the model that is fine-tuned; "": begin from random parameters
    fingerprint: str = ""  # of the base's parameters; filled in when a run begins, refused when it changes
    train: tuple[str, ...] = ()  # base arrays that are trained wholly besides what the method adds ("lm_head/kernel")
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"peft.method is {self.method!r}; choose one of {', '.join(METHODS)}.")
        for name, cls in (("lora", LoraConfig),):
            if not isinstance(value := getattr(self, name), cls):  # a dict, from a config file or JSON
                known = cls.__dataclass_fields__
                for key in value:
                    if key not in known:
                        raise UserError(f"The config has an unknown key peft.{name}.{key}; known are {', '.join(known)}.")
                values = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
                object.__setattr__(self, name, cls(**values))
