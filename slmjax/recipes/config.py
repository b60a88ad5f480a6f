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
from slmjax.errors import UserError, did_you_mean, shown
from slmjax.field_types import check_fields
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.peft.config import OLD_KEYS, PeftConfig
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.sharding.config import MeshConfig
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.config import BUDGETS, OptimizerConfig, ScheduleConfig, TrainingConfig
from slmjax.untrusted import MAX_LAYERS, MAX_RANK, MAX_SIZE, MAX_VIRTUAL_TOKENS

CHINCHILLA_TOKENS_PER_PARAM = 20.0
VERSION = 2  # of a stored config; 1 had none written down
MAX_STEPS = (1 << 31) - 1  # what the state counts to


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
    begun_steps: int | None = None  # no key either: the budget that a run began with, if it goes on with another

    @property
    def tokens_per_step(self) -> int:
        """Positions in one global batch, padding included."""
        return self.training.batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """The budget in steps, whichever way it was given. Of epochs it is known once `rows_per_epoch` is."""
        t = self.training
        if t.steps:
            return _countable(t.steps)
        if t.epochs:
            if self.rows_per_epoch is None:
                raise UserError(f"The steps of training.epochs={t.epochs:g} are known once the data are prepared.")
            steps = max(1, math.ceil(t.epochs * self.rows_per_epoch / t.batch_size))
        else:
            tokens = t.tokens or t.tokens_per_param * count_parameters(self.model).total
            steps = max(1, -(-int(tokens) // self.tokens_per_step))
        return _countable(steps)

    @property
    def laid_out_schedule(self) -> ScheduleConfig:
        """The schedule, with the warmup that the run began with if that was a share of another budget."""
        schedule = self.schedule
        if self.begun_steps is None or schedule.warmup_steps:
            return schedule
        warmup = round(schedule.warmup_fraction * self.begun_steps)
        return dataclasses.replace(schedule, warmup_steps=warmup, warmup_fraction=0.0)

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


def _countable(steps: int) -> int:
    if steps > MAX_STEPS:
        raise UserError(f"The budget of section training is {shown(steps)} steps: a run has at most {MAX_STEPS}.")
    return steps


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
            raise UserError(f"The config's section {name!r} is {shown(section)}: it must be a table of keys.")
        if name == "data":
            cls = data_config_class(section)
        built[name] = _section(name, cls, section)
    return RunConfig(**built)


def _section(name: str, cls: Any, section: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in section:
        if key not in known:
            raise UserError(f"The config has an unknown key {name}.{key}; {did_you_mean(str(key), known)}")
    check_fields(cls, section, f"{name}.")
    for place, most in _MOST.items():
        check_most(place, section, name, most)
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in section.items()})
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"The config's section {name!r} is incomplete or has a wrong type: {error}.") from error


# Whole numbers of the config that become sizes of arrays, or are counted to; in a section, all of its numbers.
_MOST = {
    "model.num_layers": MAX_LAYERS,
    "model.block_repeats": MAX_LAYERS,
    "model": MAX_SIZE,
    "data.sequence_length": MAX_SIZE,
    "data.num_threads": 1 << 10,
    "data.prefetch": 1 << 20,
    "training.batch_size": MAX_SIZE,
    "training.accumulation": MAX_SIZE,
    "training.scan_unroll": MAX_LAYERS,
    "training.samples": 1 << 16,
    "mesh": MAX_SIZE,
    "peft.expand": MAX_LAYERS,
    "peft.lora.r": MAX_RANK,
    "peft.prefix.num_virtual_tokens": MAX_VIRTUAL_TOKENS,
    "peft.prompt.num_virtual_tokens": MAX_VIRTUAL_TOKENS,
    "peft.p_tuning.num_virtual_tokens": MAX_VIRTUAL_TOKENS,
    "peft": MAX_SIZE,
}


def check_most(place: str, section: Mapping[str, Any], name: str, most: int) -> None:
    """UserError where a whole number at `place` (a key, or a section with all below it) is above `most`."""
    first, *keys = place.split(".")
    value: Any = section if first == name else None
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    found = _largest(place, value)
    if found is not None and found[1] > most:
        raise UserError(f"{found[0]}={shown(found[1])} must be at most {most}.")


def _largest(place: str, value: Any) -> tuple[str, int] | None:
    """The largest whole number below a key, and its own key."""
    if isinstance(value, Mapping):
        found = [_largest(f"{place}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        found = [_largest(place, item) for item in value]
    else:
        return (place, value) if isinstance(value, int) and not isinstance(value, bool) else None
    return max((one for one in found if one is not None), key=lambda one: one[1], default=None)
