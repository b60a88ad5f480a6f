"""A run's config: a `ConfigDict` at the door, typed frozen dataclasses behind it.

Defaults live in the dataclasses of each room and nowhere else; `default_config` shows them, config files change some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from slmjax.data.config import DataConfig
from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError, did_you_mean
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.peft.config import PeftConfig
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.sharding.mesh import MeshConfig
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.config import BUDGETS, OptimizerConfig, ScheduleConfig, TrainingConfig

CHINCHILLA_TOKENS_PER_PARAM = 20.0


@dataclass(frozen=True)
class RunConfig:
    """All sections of one run."""

    model: ModelConfig
    data: DataConfig | SftConfig
    training: TrainingConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    peft: PeftConfig = dataclasses.field(default_factory=PeftConfig)
    forgetting: ForgettingConfig = dataclasses.field(default_factory=ForgettingConfig)

    @property
    def tokens_per_step(self) -> int:
        """Positions in one global batch, padding included."""
        return self.training.batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """The budget in steps, whichever way it was given."""
        t = self.training
        if t.steps:
            return t.steps
        tokens = t.tokens or t.tokens_per_param * count_parameters(self.model).total
        return max(1, -(-int(tokens) // self.tokens_per_step))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; `run_config(d)` gives the same config back."""
        return dataclasses.asdict(self)


SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "mesh": MeshConfig,
    "checkpoint": CheckpointConfig,
    "peft": PeftConfig,
    "forgetting": ForgettingConfig,
}


def default_config(model: ModelConfig, *, data: type[DataConfig] | type[SftConfig] = DataConfig) -> ConfigDict:
    """Every section with its defaults, for a config file to change. The budget is Chinchilla's 20 tokens/param.

    data: what is read, text (DataConfig) or conversations to fine-tune on (SftConfig).
    """

    def section(name, cls):
        if name == "model":
            values = dataclasses.asdict(model)
        else:
            values = {f.name: _default(f) for f in dataclasses.fields(cls)}
        return ConfigDict({k: _plain(v) for k, v in values.items()}, convert_dict=True)

    config = ConfigDict({name: section(name, cls) for name, cls in (SECTIONS | {"data": data}).items()})
    config.training.tokens_per_param = CHINCHILLA_TOKENS_PER_PARAM
    config.lock()
    for name in ("sources", "validation"):  # the places where names are the user's own
        if name in config.data:
            config.data[name].unlock()
    return config


def set_budget(config: ConfigDict, **budget: float) -> None:
    """Replace the budget by one of steps=, tokens=, tokens_per_param=."""
    for name in ("steps", "tokens", "tokens_per_param"):
        setattr(config.training, name, type(getattr(config.training, name))(budget.get(name, 0)))


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return ConfigDict({k: _plain(v) for k, v in value.items()})
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def nearest(name: str, known: list[str]) -> str:
    """' Did you mean X?' when a known name is close, else the list of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."


def run_config(config: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The typed config of a ConfigDict (or of `RunConfig.to_dict()`). UserError for unknown keys and wrong values."""
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    for name in values:
        if name not in SECTIONS:
            raise UserError(f"The config has an unknown section {name!r}; {nearest(name, list(SECTIONS))}")
    built = {}
    for name, cls in SECTIONS.items():
        section = values.get(name) or {}
        if name == "data" and "chat_template" in section:
            cls = SftConfig
        if not isinstance(section, Mapping):
            raise UserError(f"The config's section {name!r} is {section!r}: it must be a table of keys and values.")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in section:
            if key not in known:
                raise UserError(f"The config has an unknown key {name}.{key!r}; {nearest(key, known)}")
        section = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}
        try:
            built[name] = cls(**section)
        except TypeError as error:
            raise UserError(f"The config's section {name!r} is incomplete or of a wrong type: {error}.") from error
    return RunConfig(**built)
