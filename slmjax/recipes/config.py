"""A run's config: a `ConfigDict` at the door, typed frozen dataclasses behind it.

Defaults live in the dataclasses of each room and nowhere else; `default_config` shows them, config files change some.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from slmjax.data.config import DataConfig
from slmjax.data.sft_config import SftConfig, data_config_class
from slmjax.errors import UserError, did_you_mean
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.peft.config import OLD_KEYS, PeftConfig
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.sharding.config import MeshConfig
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.config import BUDGETS, OptimizerConfig, ScheduleConfig, TrainingConfig

CHINCHILLA_TOKENS_PER_PARAM = 20.0
VERSION = 2  # of a stored config; 1 had none written down


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
    rows_per_epoch: int | None = None  # no key of the config: counted once the data are there

    @property
    def tokens_per_step(self) -> int:
        """Positions in one global batch, padding included."""
        return self.training.batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """The budget in steps, whichever way it was given. Of epochs it is known once `rows_per_epoch` is."""
        t = self.training
        if t.steps:
            return t.steps
        if t.epochs:
            if self.rows_per_epoch is None:
                raise UserError(f"The steps of training.epochs={t.epochs:g} are known once the data are prepared.")
            return max(1, math.ceil(t.epochs * self.rows_per_epoch / t.batch_size))
        tokens = t.tokens or t.tokens_per_param * count_parameters(self.model).total
        return max(1, -(-int(tokens) // self.tokens_per_step))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, with the version of their layout; `run_config(d)` gives the same config back."""
        return {"version": VERSION} | {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}


SECTIONS: dict[str, Any] = {
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

    def section_of(name: str, cls: Any) -> ConfigDict:
        if name == "model":
            values = dataclasses.asdict(model)
        else:
            values = {f.name: _default(f) for f in dataclasses.fields(cls)}
        return ConfigDict({k: _plain(v) for k, v in values.items()}, convert_dict=True)

    config = ConfigDict({name: section_of(name, cls) for name, cls in (SECTIONS | {"data": data}).items()})
    config.training.tokens_per_param = CHINCHILLA_TOKENS_PER_PARAM
    for old, new in OLD_KEYS.items():  # a config file may still set the old one, which is the same value
        (group, _, key), (parent, _, today) = old.rpartition("."), new.rpartition(".")
        config.peft[group][key] = (config.peft[parent] if parent else config.peft).get_ref(today)
    config.lock()
    for name in ("sources", "validation"):  # the places where names are the user's own
        if name in config.data:
            config.data[name].unlock()
    return config


def set_budget(config: ConfigDict, **budget: float) -> None:
    """Replace the budget by one of steps=, tokens=, tokens_per_param=, epochs=."""
    for name in BUDGETS:
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


def run_config(config: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The typed config of a ConfigDict, or of a stored config of this version or an earlier one.

    A key that is not there has its default, so a run made before a key existed is still the same run.

    Raises:
        UserError: unknown keys, wrong types or values, or a config that a newer version wrote.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    version = values.pop("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise UserError(f"The config has version={version!r}, and this slmjax reads up to {VERSION}: update slmjax.")
    for name in values:
        if name not in SECTIONS:
            raise UserError(f"The config has an unknown section {name!r}; {did_you_mean(name, SECTIONS)}")
    built = {}
    for name, cls in SECTIONS.items():
        section = values.get(name) or {}
        if not isinstance(section, Mapping):
            raise UserError(f"The config's section {name!r} is {section!r}: it must be a table of keys and values.")
        if name == "data":
            cls = data_config_class(section)
        built[name] = _section(name, cls, section)
    return RunConfig(**built)


def _section(name: str, cls: Any, section: Mapping[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in section.items():
        if key not in fields:
            raise UserError(f"The config has an unknown key {name}.{key}; {did_you_mean(key, fields)}")
        _check_type(f"{name}.{key}", value, fields[key].type)
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in section.items()})
    except TypeError as error:
        raise UserError(f"The config's section {name!r} is incomplete or has a wrong type: {error}.") from error


_SCALARS = {"int": "an integer", "float": "a number", "str": "text", "bool": "True or False"}


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """UserError where a scalar is not of the type that its field is annotated with (as source text)."""
    wanted = str(getattr(annotation, "__name__", annotation))
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
    }
    if wanted in _SCALARS and not fits[wanted]:
        raise UserError(f"{key}={value!r} must be {_SCALARS[wanted]}.")
