"""Adapters of others and of our runs, found, put on their bases, and written as others read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.adapters import adapterhub
from slmjax.formats.adapters.adapter import Adapter
from slmjax.formats.adapters.names import names_of
from slmjax.formats.huggingface.directory import CONFIG as MODEL_CONFIG
from slmjax.formats.huggingface.directory import is_huggingface
from slmjax.formats.huggingface.export import families_for
from slmjax.formats.huggingface.families import family_of
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.hub import is_hub_id
from slmjax.formats.peft.read import CONFIG, PeftDirectory, open_peft, read_peft
from slmjax.formats.peft.write import save_peft
from slmjax.formats.safetensors_files import INDEX, SINGLE
from slmjax.inference.finetuned import load_finetuned
from slmjax.inference.language_model import LanguageModel, Location, tokenizer_directory
from slmjax.models.config import ModelConfig
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import Method
from slmjax.peft.methods.prompts import prompt_of
from slmjax.peft.targets import flatten
from slmjax.tokenization.tokenizer import load_tokenizer
from slmjax.untrusted import inside, read_json

WRITTEN = ("peft", "adapterhub")
Load = Callable[[str], LanguageModel]


@dataclass(frozen=True)
class Tuned:
    """A fine-tune of any origin and what it was made on."""

    adapter: Adapter
    base: LanguageModel  # float32
    base_name: str
    family: HuggingFaceFamily  # that names the base's tensors


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds somebody's adapter rather than a model. A copy of the base's config may lie there."""
    return (directory / CONFIG).is_file() and not any((directory / name).exists() for name in (SINGLE, INDEX))


def open_adapter(directory: Path) -> PeftDirectory | adapterhub.AdapterHubDirectory:
    """An adapter's config and header, peft's or AdapterHub's; no array is read."""
    values = read_json(inside(directory, CONFIG))
    return open_peft(directory) if "peft_type" in values else adapterhub.open_adapterhub(directory, values)


def described(directory: Path) -> dict[str, Any]:
    """What an adapter's files say by themselves: its kind, its base, what it adapts, its numbers and their dtypes."""
    opened = open_adapter(directory)
    tensors = opened.tensors
    facts: dict[str, Any] = {"kind": f"adapter of {opened.origin}", "method": opened.method, "base": opened.base}
    facts |= opened.facts()
    facts["trained_parameters"] = sum(math.prod(shape) for shape in tensors.shapes().values())
    return facts | {"dtype": ", ".join(tensors.dtypes()), "file_bytes": tensors.num_bytes()}


def read_adapter(directory: Path, load: Load, base: str | None = None) -> Tuned:
    """An adapter's directory with its base, which `load` reads in float32.

    base: where the base is; None: where the adapter's own config says. UserError when it is not there.
    """
    opened = open_adapter(directory)
    path = base or opened.base
    if not path:
        raise UserError(f"{directory / CONFIG} does not say which base it is for: give it (--base MODEL, or base=).")
    revision = (
        None if base or isinstance(opened, adapterhub.AdapterHubDirectory) else opened.file.values.get("revision")
    )
    if is_hub_id(path) and revision not in (None, "main"):
        raise UserError(f"{directory} is for {path} at the revision {str(revision)[:60]!r}: fetch it and give --base.")
    lm = _load_base(path, load, directory, given=base is not None)
    if isinstance(opened, adapterhub.AdapterHubDirectory):
        family = family_at(path, lm.config, [])
        return Tuned(adapterhub.read_adapterhub(opened, names_of(lm.config, family), path), lm, path, family)
    family = family_at(path, lm.config, opened.named())
    return Tuned(read_peft(opened, family, lm.config, lm.params, path), lm, path, family)


def _load_base(path: str, load: Load, directory: Path, *, given: bool) -> LanguageModel:
    if is_adapter(Path(path).expanduser()):
        raise UserError(f"{path} is an adapter itself: merge it into its base first (slmjax convert) and give that.")
    if given or is_hub_id(path) or Path(path).expanduser().exists():
        return load(path)
    raise UserError(
        f"{directory / CONFIG} names the base {path[:200]!r}, which is not here: give it (--base MODEL, or base=)."
    )


def read_run(place: Location, load: Load, base: str | None = None) -> Tuned:
    """A fine-tuned run's adapter; base: where the base is now, when not where the run's config says."""
    if place.kind == "saved model":
        raise UserError(f"{place.directory} is a model and no fine-tuned run: there is no adapter to write.")
    run = place.description
    method = run.peft.method
    if method in ("full", "freeze"):
        raise UserError(f"{place.directory} was trained with peft.method={method}, which makes a model and no adapter.")
    where = base if base and Path(base).expanduser().exists() else run.peft.base
    lm = load(where)
    tokenizer = load_tokenizer(tokenizer_directory(place))
    checkpoints = place.directory / "checkpoints"
    tuned = load_finetuned(run, checkpoints, lm.params, step=place.step, encode=tokenizer.encode)
    adapter = adapter_of(run.peft, tuned.method, tuned.trained, tuned.frozen)
    return Tuned(adapter, lm, base or run.peft.base, family_at(where, lm.config, []))


def adapter_of(config: PeftConfig, method: Method, trained: Any, frozen: Any) -> Adapter:
    """What a method that adds something has trained, apart from its base."""
    parts = method.parts(trained, frozen)
    params = flatten(parts["params"])
    soft = config.method in ("prompt", "p_tuning")
    return Adapter(
        config.method,
        parts["peft"],
        method.options,
        {path: params[path] for path in flatten(trained.get("params", {}))},
        prompt=prompt_of(trained["peft"]) if soft else None,
        rslora=config.method == "lora" and config.lora.rslora,
    )


def family_at(path: str, config: ModelConfig, modules: list[str]) -> HuggingFaceFamily:
    """The family that names the tensors of the base at `path`: its own, or the first that has these modules.

    UserError when no family can say the base.
    """
    place = Path(path).expanduser()
    if is_huggingface(place):
        return family_of(read_json(place / MODEL_CONFIG).get("model_type"))
    families = families_for(config)
    return next((family for family in families if not names_of(config, family).missing(modules)), families[0])


def save_adapter(tuned: Tuned, directory: str | Path, *, format: str = "peft") -> Path:
    """Write the adapter alone, "peft" or "adapterhub", whole or not at all; returns the directory."""
    names = names_of(tuned.base.config, tuned.family)
    write: Any = save_peft if format == "peft" else adapterhub.save_adapterhub
    return write(tuned.adapter, names, tuned.base.params, directory, base_name=tuned.base_name)
