"""slmjax.json: what a loader must know of a run or of a model's directory, apart from how it was trained.

A run writes one beside its config.json, a saved model one beside its weights, so that whoever loads them reads this
file and no training config. Runs made before it are described from their config.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from slmjax.errors import UserError, did_you_mean, shown
from slmjax.field_types import check_fields
from slmjax.files import local_path, place_file
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.peft.config import PeftConfig
from slmjax.untrusted import MAX_LAYERS, MAX_NAMES, MAX_SIZE, Values, inside, read_json, require_bounded

FILE_NAME = "slmjax.json"
VERSION = 1
RUN_CONFIG = "config.json"  # of a run, in which runs made before this file are told by these sections
_RUN_SECTIONS = {"model", "training"}
Config = TypeVar("Config", ModelConfig, PeftConfig)
_MALFORMED = (TypeError, ValueError, ArithmeticError, AttributeError, KeyError)


@dataclass(frozen=True, kw_only=True)
class Description:
    """A run's network and what was added to it, or a saved model's.

    Attributes:
        kind: "run", whose parameters are in checkpoints, or "model", whose parameters are in safetensors files.
        model: the network, `peft.new_layers` included.
        peft: how it was fine-tuned, with the base's path and fingerprint; the default trains all and has no base.
        averaged: a run's checkpoints hold an average of its weights, which is what is loaded.
        add_bos: texts began with the tokenizer's bos token in training.
        stop_ids: token ids at which generation ends; none: the tokenizer's end-of-text token alone.
        generation: of a run, the settings of generation_config.json that its base has; a model's are in that file.
        total_steps: a run's budget in steps, None where it is not known.
        tokenizer: a run's tokenizer directory, relative to the run's own (or absolute).
        base_places: of a fine-tune whose base is on this disk, where that was when the run was last begun: absolute,
            and relative to the run's directory, so that it is found again when both were moved.
        loaded: the checkpoint of a run that is loaded where none is named, the "latest" or the "best".
        best_metric: the evaluation's number by which a run's best checkpoint is told.
        names: of a model's tensors, "huggingface" (a family of transformers, which config.json says) or "slmjax" (our
            own paths, where no family can express the network).
        tokenizer_changes: of a model, what its tokenizer's files had to lose to be read by transformers: "settings"
            that are put back, names of settings "without" which it is, the "post_processor" that it had.
    """

    kind: Literal["run", "model"]
    model: ModelConfig
    peft: PeftConfig = field(default_factory=PeftConfig)
    averaged: bool = False
    add_bos: bool = False
    stop_ids: tuple[int, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int | None = None
    tokenizer: str = "tokenizer"
    base_places: tuple[str, ...] = ()
    loaded: Literal["latest", "best"] = "latest"
    best_metric: str = "validation_loss"
    names: Literal["huggingface", "slmjax"] = "slmjax"
    tokenizer_changes: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; only of the kind described."""
        values: dict[str, Any] = {"version": VERSION, "kind": self.kind, "model": self.model.to_dict()}
        values |= {"add_bos": self.add_bos, "stop_ids": list(self.stop_ids)}
        if self.kind == "run":
            tuned = self.peft.base or self.peft.method != "full"
            values |= {"peft": dataclasses.asdict(self.peft)} if tuned else {}
            values |= {"generation": dict(self.generation)} if self.generation else {}
            values |= {"averaged": self.averaged, "total_steps": self.total_steps, "tokenizer": self.tokenizer}
            values |= {"base_places": list(self.base_places)} if self.base_places else {}
            values |= {"loaded": self.loaded, "best_metric": self.best_metric}
        else:
            values |= {"names": self.names, "tokenizer_changes": dict(self.tokenizer_changes)}
        return values

    def write(self, directory: Path) -> Path:
        """Write the directory's slmjax.json, whole or not at all; returns its path. UserError for a full disk."""
        path = directory / FILE_NAME
        with place_file(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def read(directory: Path) -> Description:
        """The description in a directory, or that of a run that has none yet, from its config.json.

        Raises:
            UserError: neither file is there, or what it says makes no model; nothing large is allocated before.
        """
        if (directory / FILE_NAME).is_file():
            return description_from(read_json(inside(directory, FILE_NAME)), directory / FILE_NAME)
        path = directory / RUN_CONFIG
        values = read_json(inside(directory, RUN_CONFIG))
        if not values.keys() >= _RUN_SECTIONS:
            raise UserError(f"{path} is not a run's config: it has no sections model and training.")
        return _description_of_run(values, path)


def is_described(directory: Path) -> bool:
    """Whether a directory is a run or a model of ours: it has a slmjax.json, or a run's config.json."""
    if (directory / FILE_NAME).is_file():
        return True
    return (directory / RUN_CONFIG).is_file() and read_json(directory / RUN_CONFIG).keys() >= _RUN_SECTIONS


def description_from(values: Mapping[str, Any], path: Path) -> Description:
    """A description from its JSON values, those of the file `path`. UserError naming what does not fit."""
    _require_known(values, Description, "", path, "version")
    typed = Values(values, str(path))
    if values.get("version") != VERSION:
        raise UserError(f"{path} is of version {shown(values.get('version'))}; this slmjax reads version {VERSION}.")
    kind = values.get("kind")
    if kind not in ("run", "model"):
        raise typed.error("kind", "must be 'run' or 'model'")
    names = typed.text("names", "slmjax")
    if names not in ("huggingface", "slmjax"):
        raise typed.error("names", "must be 'huggingface' or 'slmjax'")
    loaded = typed.text("loaded", "latest")
    if loaded not in ("latest", "best"):
        raise typed.error("loaded", "must be 'latest' or 'best'")
    model = model_config_from(values.get("model"), path)
    return Description(
        kind=kind,
        model=model,
        peft=peft_config_from(typed.table("peft"), path),
        averaged=typed.flag("averaged"),
        add_bos=typed.flag("add_bos"),
        stop_ids=token_ids(values.get("stop_ids") or [], "stop_ids", path),
        generation=typed.table("generation"),
        total_steps=typed.integer("total_steps", None, most=10**12),
        tokenizer=typed.text("tokenizer", "tokenizer"),
        base_places=tuple(typed.names("base_places", [])),
        loaded=loaded,  # type: ignore[arg-type]
        best_metric=typed.text("best_metric", "validation_loss"),
        names=names,  # type: ignore[arg-type]
        tokenizer_changes=typed.table("tokenizer_changes"),
    )


def model_config_from(values: Any, path: Path) -> ModelConfig:
    """A ModelConfig from the JSON values in `path`; UserError naming what does not fit."""
    if not isinstance(values, dict):
        raise UserError(f"{path} does not describe a model.")
    for name in ("num_layers", "block_repeats"):
        require_bounded(values.get(name), f"model.{name}", str(path), MAX_LAYERS)
    return _config_from(ModelConfig, values, "model", "a model", path)


def peft_config_from(values: Mapping[str, Any], path: Path) -> PeftConfig:
    """A PeftConfig from the JSON values in `path`; UserError naming what does not fit."""
    return _config_from(PeftConfig, values, "peft", "a fine-tune", path)


def _config_from(kind: type[Config], values: Mapping[str, Any], section: str, what: str, path: Path) -> Config:
    _require_known(values, kind, f"{section}.", path)
    require_bounded(values, section, str(path))
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        check_fields(kind, values, f"{section}.")
        return kind(**fields)
    except (UserError, *_MALFORMED) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} describes {what} that this version cannot read: {reason}.") from error


def _require_known(values: Mapping[str, Any], kind: type, prefix: str, path: Path, *others: str) -> None:
    known = [*others, *(item.name for item in dataclasses.fields(kind))]
    unknown = next((key[:60] for key in values if key not in known), None)
    if unknown is not None:
        raise UserError(f"{path} has the unknown key {prefix}{unknown}; {did_you_mean(unknown, known)}")


def token_ids(ids: Any, key: str, path: Path) -> tuple[int, ...]:
    """A list of token ids as JSON had it at `path`."""
    known = isinstance(ids, list) and len(ids) <= MAX_NAMES
    if not known or not all(type(id) is int and 0 <= id < MAX_SIZE for id in ids):
        raise UserError(f"{path}: {key} must be a list of token ids.")
    return tuple(ids)


def _description_of_run(values: Mapping[str, Any], path: Path) -> Description:
    """Of a run whose config.json is all that there is: today's defaults filled in for what it does not say."""
    typed = Values(values, str(path))
    training, data = (Values(typed.table(name), f"{path}: {name}") for name in ("training", "data"))
    model = model_config_from(values.get("model"), path)
    tokenizer = _tokenizer_of_run(path.parent, data.text("cache_dir", ""))
    settings = path.parent / tokenizer / "tokenizer_config.json"
    stop_ids = read_json(settings).get("stop_ids", []) if settings.is_file() else []
    return Description(
        kind="run",
        model=model,
        peft=peft_config_from(typed.table("peft"), path),
        averaged=bool(training.number("ema_decay", 0.0)),
        add_bos=data.flag("add_bos"),
        stop_ids=token_ids(stop_ids, "stop_ids", settings),
        total_steps=_total_steps(training, data, model),
        tokenizer=tokenizer,
    )


def _tokenizer_of_run(directory: Path, cache: str) -> str:
    """Where a run's tokenizer lies: beside its checkpoints, else with its corpus."""
    if (directory / "tokenizer").is_dir():
        return "tokenizer"
    base = local_path(cache, "data.cache_dir") if cache else Path("data")
    inner = Path("corpus") / "tokenizer" if (directory / base / "corpus").is_dir() else Path("tokenizer")
    return str(base / inner)


def _total_steps(training: Values, data: Values, model: ModelConfig) -> int | None:
    """The budget in steps, in whichever of the three ways it was given."""
    if steps := training.integer("steps", 0, most=10**12):
        return steps
    tokens = training.integer("tokens", 0, most=10**18) or (
        training.number("tokens_per_param", 0.0) * count_parameters(model).total
    )
    a_step = training.integer("batch_size", 0) * data.integer("sequence_length", 0)
    return max(1, -(-int(tokens) // a_step)) if tokens and a_step else None
