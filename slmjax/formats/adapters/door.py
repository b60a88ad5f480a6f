"""Adapters of others and of our runs, found, put on their bases, and written as others read them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.formats.adapters import adapterhub
from slmjax.formats.adapters.adapter import Adapter
from slmjax.formats.adapters.names import Names, names_of
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.huggingface.directory import is_huggingface
from slmjax.formats.huggingface.export import families_for
from slmjax.formats.huggingface.families import family_of
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.hub import is_hub_id
from slmjax.formats.peft.read import open_peft
from slmjax.formats.peft.write import save_peft
from slmjax.formats.recognition import ADAPTER_CONFIG, ADAPTERS, CONFIG, kind_of
from slmjax.formats.runs import open_run, read_base
from slmjax.formats.safetensors_files import SafetensorsDirectory
from slmjax.inference.finetuned import load_finetuned
from slmjax.inference.generation_settings import read_settings, stop_ids_from, without_known
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, flatten
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import Method
from slmjax.peft.methods.prompts import prompt_of
from slmjax.tokenization.named_templates import named_templates, read_templates, template_setting
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.untrusted import inside, read_json

Load = Callable[[str], LanguageModel]


@dataclass(frozen=True)
class Tuned:
    """A fine-tune of any origin and what it was made on."""

    adapter: Adapter
    base: LanguageModel  # float32
    base_name: str
    family: HuggingFaceFamily  # that names the base's tensors
    has_own_tokenizer: bool = False  # the base's tokenizer here is the fine-tune's


class OpenedAdapter(Protocol):
    """An adapter's config and headers, found whole before any array is read."""

    @property
    def origin(self) -> str:
        """The library whose format it is: "peft" or "AdapterHub"."""
        ...

    @property
    def method(self) -> str:
        """The kind of adapter, as its library calls it."""
        ...

    @property
    def base(self) -> str | None:
        """The base, by a path or a name on the hub; None where the config does not say it."""
        ...

    @property
    def revision(self) -> str | None:
        """The revision of the base on the hub; None where the config does not say it."""
        ...

    @property
    def tensors(self) -> SafetensorsDirectory:
        """The file of the adapter's weights."""
        ...

    def facts(self) -> dict[str, Any]:
        """Sizes of the adapter, and the parts of the base that it adapts, for `inspect`."""
        ...

    def named(self) -> list[str]:
        """Modules of the base that its tensors name."""
        ...

    def read(self, names: Names, params: Params, where: str) -> Adapter:
        """The adapter for a base, whose names and parameters these are, at `where`."""
        ...


def open_adapter(directory: Path) -> OpenedAdapter:
    """An adapter's config and header, peft's or AdapterHub's; no array is read."""
    values = read_json(inside(directory, ADAPTER_CONFIG))
    return open_peft(directory) if "peft_type" in values else adapterhub.open_adapterhub(directory, values)


def describe_adapter(directory: Path) -> tuple[None, dict[str, Any]]:
    """Facts of an adapter's own files: its kind, its base, what it adapts, its numbers and their dtypes."""
    opened = open_adapter(directory)
    tensors = opened.tensors
    facts: dict[str, Any] = {"kind": f"adapter of {opened.origin}", "method": opened.method, "base": opened.base}
    facts |= opened.facts()
    facts["trained_parameters"] = sum(math.prod(shape) for shape in tensors.shapes().values())
    return None, facts | {"dtype": ", ".join(tensors.dtypes()), "file_bytes": tensors.num_bytes()}


def read_adapter(directory: Path, load: Load, base: str | None = None) -> Tuned:
    """An adapter's directory with its base, which `load` reads in float32.

    base: where the base is; None: where the adapter's own config says. UserError when it is not there.
    """
    opened = open_adapter(directory)
    path = base or _beside(opened.base, directory)
    if not path:
        raise UserError(
            f"{directory / ADAPTER_CONFIG} does not say which base it is for: give it (--base MODEL, or base=)."
        )
    if base is None and is_hub_id(path) and opened.revision not in (None, "main"):
        raise UserError(f"{directory} is for {path} at the revision {opened.revision!r}: fetch it and give --base.")
    lm = _load_base(path, load, directory, given=base is not None)
    family = family_at(path, lm.config, opened.named())
    adapter = opened.read(names_of(lm.config, family), lm.params, path)
    vocab_size = (adapter.network or lm.config).vocab_size
    tuned = with_own_tokenizer(lm, directory, vocab_size)
    return Tuned(adapter, tuned, path, family, has_own_tokenizer=tuned.tokenizer is not lm.tokenizer)


def with_own_tokenizer(lm: LanguageModel, directory: Path, vocab_size: int) -> LanguageModel:
    """The base with the tokenizer, chat template, ends and settings that lie beside an adapter's weights.

    The ends of both are ends: what an adapter learned to end with, and what its base ends with.
    """
    tokenizer, own = lm.tokenizer, huggingface_tokenizer.is_there(directory)
    if own:
        tokenizer = huggingface_tokenizer.read(directory)
    elif tokenizer is not None and (templates := read_templates(directory)):
        tokenizer, own = copy.copy(tokenizer), True
        tokenizer.settings = {**tokenizer.settings, "chat_template": template_setting(templates)}
    settings = read_settings(directory)
    if not own and not settings:
        return lm
    stops = dict.fromkeys([*lm.stop_ids, *stop_ids_from(settings, tokenizer, vocab_size)])
    said = without_known(settings, tokenizer, tuple(stops))
    generation = {**lm.generation, **{key: value for key, value in said.items() if key in settings}}
    return replace(lm, tokenizer=tokenizer, stop_ids=tuple(stops), generation=generation)


def _beside(named: str | None, directory: Path) -> str | None:
    """The base that an adapter names; a relative path also from the adapter's directory, or the one around it."""
    if not named or local_path(named, "The base").exists():
        return named
    here = directory.resolve()
    return next((str(place / named) for place in (here, here.parent) if (place / named).exists()), named)


def _load_base(path: str, load: Load, directory: Path, *, given: bool) -> LanguageModel:
    place = local_path(path, "The base")
    if kind_of(place) in ADAPTERS:
        raise UserError(f"{path} is an adapter itself: merge it into its base first (slmjax convert) and give that.")
    if given or is_hub_id(path) or place.exists():
        return load(path)
    shown = f"{directory / ADAPTER_CONFIG} names the base {path[:200]!r}"
    raise UserError(f"{shown}, which is not here: give it (--base MODEL, or base=).")


def read_run(path: Path, load: Load, base: str | None = None) -> Tuned:
    """A fine-tuned run's adapter; base: where the base is now, when not where the run's config says."""
    run = open_run(path)
    peft, tokenizer = run.description.peft, run.tokenizer()
    if peft.method in ("full", "freeze"):
        raise UserError(f"{path} was trained with peft.method={peft.method}, which makes a model and not an adapter.")
    there = bool(base) and local_path(base or "", "The base").exists()
    lm, where = read_base(run, load, base if there else None)
    encode = None if tokenizer is None else tokenizer.encode
    tuned = load_finetuned(run.description, run.checkpoints, lm.params, step=run.step, encode=encode)
    adapter = adapter_of(peft, tuned.method, tuned.trained, tuned.frozen)
    family, own = family_at(where, lm.config, []), tokenizer is not None and _differ(tokenizer, lm.tokenizer)
    lm = replace(lm, tokenizer=tokenizer) if own else lm
    # Who reads the adapter elsewhere finds the base by an absolute path.
    name = base or (str(Path(where).resolve()) if Path(where).exists() else peft.base)
    return Tuned(adapter, lm, name, family, has_own_tokenizer=own)


def _differ(tokenizer: Tokenizer, base: Tokenizer | None) -> bool:
    """Whether a fine-tune's tokenizer or its chat templates are others than its base's."""
    if base is None or tokenizer.fingerprint != base.fingerprint:
        return True
    ours, theirs = (named_templates(each.settings.get("chat_template")) for each in (tokenizer, base))
    return ours != theirs


def adapter_of(config: PeftConfig, method: Method, trained: Any, frozen: Any) -> Adapter:
    """The trained part of a fine-tune, for methods that add something to their base."""
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
    place = local_path(path, "The base")
    if is_huggingface(place):
        return family_of(read_json(place / CONFIG).get("model_type"))
    families = families_for(config)
    return next((family for family in families if not names_of(config, family).missing(modules)), families[0])


def save_as_peft(tuned: Tuned, path: str | Path) -> Path:
    """Write the adapter alone as Hugging Face's peft has it, whole or not at all; returns the directory."""
    tokenizer = tuned.base.tokenizer if tuned.has_own_tokenizer else None
    about: dict[str, Any] = {"base_name": tuned.base_name, "tokenizer": tokenizer}
    return save_peft(tuned.adapter, _names(tuned), tuned.base.params, path, **about)


def save_as_adapterhub(tuned: Tuned, path: str | Path) -> Path:
    """Write the adapter alone as AdapterHub has it, whole or not at all; returns the directory."""
    tokenizer = tuned.base.tokenizer if tuned.has_own_tokenizer else None
    about: dict[str, Any] = {"base_name": tuned.base_name, "tokenizer": tokenizer}
    return adapterhub.save_adapterhub(tuned.adapter, _names(tuned), path, **about)


def _names(tuned: Tuned) -> Names:
    return names_of(tuned.base.config, tuned.family)
