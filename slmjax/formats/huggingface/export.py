"""A language model as a Hugging Face directory that transformers 4 and 5 read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.files import local_path, place_directory
from slmjax.formats.catalog import FLOATS, require_float
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.huggingface.families import FAMILIES, family_of
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.model_card import model_card
from slmjax.formats.recognition import CONFIG, MODELS, require_replaceable
from slmjax.formats.safetensors_files import write_safetensors
from slmjax.formats.tensors import PlannedTensor
from slmjax.formats.weight_map import Entry, cast, joined_dtypes, joined_shapes, write_tensors
from slmjax.inference.generation_settings import FILE_NAME as GENERATION
from slmjax.inference.generation_settings import ids_in, with_known
from slmjax.inference.language_model import LanguageModel, require_plain
from slmjax.models.config import ModelConfig

CARD = "README.md"
MAX_SHARD_BYTES = 5 * 10**9


def save_huggingface(
    lm: LanguageModel,
    path: str | Path,
    *,
    dtype: str | None = None,
    family: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a directory that transformers 4 and 5 load, whole or not at all; returns it.

    dtype: of all arrays, "float32", "bfloat16" or "float16"; None: each keeps its own. family: a model_type to write it
    as; None takes the first that can say all of the config. license, base_model: for the model card, where known.
    """
    require_plain(lm)
    directory = local_path(path, "The destination").resolve()
    require_replaceable(directory, MODELS)
    chosen = family_for(lm.config, family)
    about: dict[str, Any] = {"license": license, "base_model": base_model, "max_shard_bytes": max_shard_bytes}
    with place_directory(directory) as partial:
        write_model(lm, partial, chosen, dtype=dtype, name=directory.name, **about)
    return directory


def write_model(
    lm: LanguageModel,
    directory: Path,
    family: HuggingFaceFamily,
    *,
    name: str,
    dtype: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """All files of a model of transformers, into a directory that is there. name: of the model, on its card."""
    config, tokenizer = lm.config, lm.tokenizer
    generation = with_known(lm.generation, tokenizer, lm.stop_ids, config.vocab_size)
    values = {"architectures": [family.architecture], "model_type": family.model_type, **family.config_to(config)}
    stored = write_weights(lm, directory, family.entries(config), dtype=dtype, max_shard_bytes=max_shard_bytes)
    values |= {**ids_in(generation), "dtype": stored, "torch_dtype": stored, "use_cache": True}
    write_json(directory / CONFIG, values)
    write_json(directory / GENERATION, generation)
    if tokenizer is not None:
        huggingface_tokenizer.write(tokenizer, directory, config.context_length)
    card = model_card(config, family, stored, name=name, license=license, base_model=base_model)
    (directory / CARD).write_text(card, encoding="utf-8")


def write_weights(
    lm: LanguageModel, directory: Path, entries: Sequence[Entry], *, dtype: str | None, max_shard_bytes: int
) -> str:
    """The tensors of a model, one file or shards; returns the dtype of most of their numbers.

    dtype: of all of them; None: each keeps its own, and one that joins arrays of several takes the widest.
    """
    require_float(dtype)
    dtypes = [jnp.dtype(dtype)] * len(entries) if dtype is not None else joined_dtypes(lm.params, entries)
    shapes = joined_shapes(lm.config, entries)
    plan = [PlannedTensor(e.name, shape, kind) for e, shape, kind in zip(entries, shapes, dtypes, strict=True)]
    sizes: Counter[str] = Counter()
    for tensor in plan:
        sizes[tensor.kind.name] += math.prod(tensor.shape)
    unknown = sorted(sizes.keys() - set(FLOATS))
    if unknown:
        raise UserError(f"The model has parameters of dtype {unknown[0]}: give dtype, one of {', '.join(FLOATS)}.")
    arrays = (
        (name, cast(a, t.kind, name)) for (name, a), t in zip(write_tensors(lm.params, entries), plan, strict=True)
    )
    write_safetensors(directory, plan, arrays, max_shard_bytes=max_shard_bytes)
    return sizes.most_common(1)[0][0]


def family_for(config: ModelConfig, name: str | None = None) -> HuggingFaceFamily:
    """The first family whose config.json reads back as `config`, or the named one; UserError saying what it lacks."""
    candidates = list(FAMILIES.values()) if name is None else [family_of(name)]
    lacks = {family.model_type: _lacks(family, config) for family in candidates}
    nearest = min(candidates, key=lambda family: len(lacks[family.model_type]))
    if not lacks[nearest.model_type]:
        return nearest
    raise UserError(
        f"No family of transformers can say all of this model: {nearest.model_type} cannot express "
        f"{', '.join(lacks[nearest.model_type])}."
        if name is None
        else f"{name} cannot express this model: {', '.join(lacks[nearest.model_type])}."
    )


def family_or_none(config: ModelConfig) -> HuggingFaceFamily | None:
    """The first family whose config.json reads back as `config`, None where there is none."""
    return next((family for family in FAMILIES.values() if not _lacks(family, config)), None)


def families_for(config: ModelConfig) -> list[HuggingFaceFamily]:
    """Every family whose config.json can say all of `config`; UserError saying what is lacking where there is none."""
    return [f for f in FAMILIES.values() if not _lacks(f, config)] or [family_for(config)]


def _lacks(family: HuggingFaceFamily, config: ModelConfig) -> list[str]:
    """What of a config a family's config.json loses, as "model.window=512"; nothing where it reads back the same."""
    try:
        read = family.config_from(json.loads(json.dumps(family.config_to(config))))
    except UserError as error:
        return [str(error).rstrip("."), *dataclasses.asdict(config)]  # the farthest of all
    return [f"model.{name}={ours}" for name, (ours, _) in config.differences(read).items()]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as transformers does: indented, text as it is."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
