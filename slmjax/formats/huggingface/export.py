"""A language model as a Hugging Face directory that transformers 4 and 5 read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.files import place_directory
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.huggingface.directory import CONFIG, DTYPES, GENERATION
from slmjax.formats.huggingface.families import FAMILIES, family_of
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.huggingface.model_card import model_card
from slmjax.formats.safetensors_files import INDEX, Planned, write_safetensors
from slmjax.formats.weight_map import Entry, abstract_leaves, write_tensors
from slmjax.models.config import ModelConfig
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.untrusted import read_json

CARD = "README.md"
MAX_SHARD_BYTES = 5 * 10**9


def save_huggingface(
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    dtype: str = "float32",
    family: str | None = None,
    stop_ids: Sequence[int] = (),
    license: str | None = None,
    base_model: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a directory that transformers 4 and 5 load, whole or not at all; returns it.

    family: a model_type to write it as; None takes the first that can say all of the config. stop_ids: at which
    generation ends, beside the tokenizer's eos. license, base_model: for the model card, where they are known.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose {', '.join(DTYPES)}.")
    directory = Path(directory).expanduser().resolve()
    _require_replaceable(directory)
    chosen = family_for(config, family)
    stops = list(dict.fromkeys([*stop_ids, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]))
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops[0] if len(stops) == 1 else stops or None}
    ids["pad_token_id"] = tokenizer.pad_id
    values = {"architectures": [chosen.architecture], "model_type": chosen.model_type, **chosen.config_to(config)}
    values |= {**ids, "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    entries, target = chosen.entries(config), jnp.dtype(dtype)
    plan = _plan(config, entries, target)
    tensors = ((name, array.astype(target)) for name, array in write_tensors(params, entries))
    with place_directory(directory, lambda: False) as partial:
        _write_json(partial / CONFIG, values)
        _write_json(partial / GENERATION, ids)
        huggingface_tokenizer.write(tokenizer, partial, config.context_length)
        card = model_card(config, chosen, dtype, name=directory.name, license=license, base_model=base_model)
        (partial / CARD).write_text(card, encoding="utf-8")
        write_safetensors(partial, plan, tensors, max_shard_bytes=max_shard_bytes)
    return directory


def family_for(config: ModelConfig, name: str | None = None) -> HuggingFaceFamily:
    """The first family whose config.json reads back as `config`, or the named one; UserError saying what it lacks."""
    candidates = list(FAMILIES.values()) if name is None else [family_of(name)]
    lacks = {family.model_type: _lacks(family, config) for family in candidates}
    nearest = min(candidates, key=lambda family: len(lacks[family.model_type]))
    if not lacks[nearest.model_type]:
        return nearest
    raise UserError(
        f"no family of transformers can say all of this model: {nearest.model_type} cannot express "
        f"{', '.join(lacks[nearest.model_type])}."
        if name is None
        else f"{name} cannot express this model: {', '.join(lacks[nearest.model_type])}."
    )


def families_for(config: ModelConfig) -> list[HuggingFaceFamily]:
    """Every family whose config.json can say all of `config`; UserError saying what is lacking where there is none."""
    return [f for f in FAMILIES.values() if not _lacks(f, config)] or [family_for(config)]


def _lacks(family: HuggingFaceFamily, config: ModelConfig) -> list[str]:
    """What of a config a family's config.json loses, as "model.window=512"; nothing where it reads back the same."""
    try:
        read = family.config_from(json.loads(json.dumps(family.config_to(config))))
    except UserError as error:
        return [str(error).rstrip("."), *dataclasses.asdict(config)]  # the farthest of all
    ours, theirs = _meaning(config), _meaning(read)
    return [f"model.{name}={ours[name]}" for name in ours if ours[name] != theirs[name]]


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """A config's fields but those of initialization, each layer spelled out, and defaults by their values."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name in ("init_std", "init_scale_residual", "num_heads", "num_kv_heads", "ffn_dim"):
        del fields[name]
    rope = config.position == "rope"
    used = {spec.rope for spec in config.layers} if rope else set()
    return {
        **fields,
        "attention_scale": config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        "layer_pattern": tuple(dataclasses.replace(spec, rope=None) for spec in config.layers),
        "window": None,  # in layer_pattern
        "rope_pattern": tuple(None if spec.rope is None else config.ropes[spec.rope] for spec in config.layers),
        "rope_theta": config.rope_theta if 0 in used else None,
        "rope_theta_local": None,  # in rope_pattern
        "rope_scaling": config.rope_scaling if 0 in used else None,
        "rope_fraction": config.rotary_dim if used else None,
    }


def _plan(config: ModelConfig, entries: Sequence[Entry], dtype: np.dtype) -> list[Planned]:
    """Every tensor's shape, found by joining arrays that take no memory."""
    leaves = {path: leaf.shape for path, leaf in abstract_leaves(config).items()}

    def zeros(path: str, repeat: int | None) -> np.ndarray:
        return np.broadcast_to(np.float32(0), leaves[path] if repeat is None else leaves[path][1:])

    return [
        Planned(entry.name, entry.join([zeros(leaf.path, leaf.repeat) for leaf in entry.leaves]).shape, dtype)
        for entry in entries
    ]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _require_replaceable(directory: Path) -> None:
    """UserError where something lies that is not a model of transformers and nothing but that."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: give a new directory for the model.")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return
    ours = {CONFIG, GENERATION, CARD, INDEX, *huggingface_tokenizer.WRITTEN}
    foreign = sorted(name for name in names - ours if not (name.startswith("model") and name.endswith(".safetensors")))
    if foreign or CONFIG not in names or "model_type" not in read_json(directory / CONFIG):
        raise UserError(f"{directory} holds {(foreign or sorted(names))[0]}, so it is no model alone: choose another.")
