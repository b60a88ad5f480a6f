"""A saved model: the directory that transformers reads, and beside it slmjax.json with what only we know.

The weights lie in model.safetensors (or its shards). Where a family of transformers can express the network they have
its names, and config.json and the tokenizer's files are its too. Where none can, they have our own ("segment_0/block_0/
attention/q_proj/kernel", layers stacked), and slmjax.json is the only config. Either way the model that is read is the
one that was written: config, arrays and their dtypes, stop ids, tokenizer and its settings.

Models saved before slmjax.json (config.json of format "slmjax", params.safetensors) are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError, first_few, shown
from slmjax.files import local_path, place_directory
from slmjax.formats.facts import describe_tokenizer
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import MAX_SHARD_BYTES, family_or_none, write_json, write_model, write_weights
from slmjax.formats.recognition import CONFIG, OLD_WEIGHTS, Kind, kind_of, require_replaceable
from slmjax.formats.safetensors_files import SafetensorsDirectory
from slmjax.formats.weight_map import TensorFile, check_tensors, own_entries, read_params, shardings_of
from slmjax.inference.description import Description, model_config_from, token_ids
from slmjax.inference.generation_settings import FILE_NAME as GENERATION
from slmjax.inference.generation_settings import read_settings, with_known, without_known
from slmjax.inference.language_model import LanguageModel, require_plain
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from slmjax.untrusted import Values, read_json

KINDS: tuple[Kind, ...] = ("slmjax", "slmjax 1")  # what `save` writes, and what it wrote before slmjax.json


def save(
    lm: LanguageModel, path: str | Path, *, dtype: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Path:
    """Write a model's directory, whole or not at all; returns it. What it replaces must be a saved model alone.

    dtype: of all arrays, "float32", "bfloat16" or "float16"; None: each keeps its own.
    """
    require_plain(lm)
    directory = local_path(path, "The destination").resolve()
    require_replaceable(directory, KINDS)
    family = family_or_none(lm.config)
    tokenizer = lm.tokenizer
    add_bos = tokenizer is not None and tokenizer.settings.get("add_bos_token") is True
    about: dict[str, Any] = {"kind": "model", "model": lm.config, "add_bos": add_bos, "stop_ids": lm.stop_ids}
    with place_directory(directory) as partial:
        if family is not None:
            write_model(lm, partial, family, dtype=dtype, name=directory.name, max_shard_bytes=max_shard_bytes)
            changes = {} if tokenizer is None else huggingface_tokenizer.changes(tokenizer, partial)
            Description(names="huggingface", tokenizer_changes=changes, **about).write(partial)
        else:
            if tokenizer is not None:
                tokenizer.save(partial)
            if lm.generation:
                settings = with_known(lm.generation, tokenizer, lm.stop_ids, lm.config.vocab_size)
                write_json(partial / GENERATION, settings)
            write_weights(lm, partial, own_entries(lm.config), dtype=dtype, max_shard_bytes=max_shard_bytes)
            changes = {} if tokenizer is None else huggingface_tokenizer.changes(tokenizer, partial)
            Description(names="slmjax", tokenizer_changes=changes, **about).write(partial)
    return directory


def load(path: Path, *, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None) -> LanguageModel:
    """The model that was written to a directory.

    mesh: to put each array's parts on; None is the first device. dtype: of the arrays; None: those of the file.
    """
    description = _description(path)
    if description.names == "huggingface":
        opened = open_huggingface(path)
        _require_same_network(description.model, opened.config, path)
        params = read_weights(opened, mesh, dtype, config=description.model)
    else:
        params = _read_own(path, description.model, mesh, dtype)
    tokenizer, settings = _tokenizer(path, description), read_settings(path)
    return LanguageModel(
        config=description.model,
        params=params,
        tokenizer=tokenizer,
        stop_ids=description.stop_ids,
        generation=without_known(settings, tokenizer, description.stop_ids) if settings else {},
        path=str(path),
    )


def describe(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """A saved model's network, and what else is there; no array is read."""
    description = _description(path)
    file = _file(path)
    facts: dict[str, Any] = {"kind": "saved model", "dtype": ", ".join(file.dtypes())}
    try:
        facts |= describe_tokenizer(_tokenizer(path, description))
    except UserError:
        facts |= describe_tokenizer(None)
    return description.model, facts


def _description(path: Path) -> Description:
    """slmjax.json, or what config.json of format "slmjax" said before it."""
    if kind_of(path) == "slmjax":
        return Description.read(path)
    values = Values(read_json(path / CONFIG), str(path / CONFIG))
    if values.get("format") != "slmjax":
        raise UserError(f"{path / CONFIG} is of format {shown(values.get('format'))}, not 'slmjax'.")
    if values.get("version") != 1:
        raise UserError(f"{path} is of version {shown(values.get('version'))}; this slmjax reads version 1.")
    model = model_config_from(values.get("model"), path / CONFIG)
    return Description(kind="model", model=model, stop_ids=token_ids(values.get("stop_ids") or [], "stop_ids", path))


def _file(path: Path) -> SafetensorsDirectory:
    return SafetensorsDirectory(path, OLD_WEIGHTS if kind_of(path) == "slmjax 1" else None)


def _read_own(path: Path, config: ModelConfig, mesh: jax.sharding.Mesh | None, dtype: str | None) -> Params:
    file: TensorFile = _file(path)
    entries = own_entries(config)
    check_tensors(config, entries, file, str(path))
    return read_params(config, entries, file, dtype=dtype, shardings=shardings_of(config, mesh))


def _tokenizer(path: Path, description: Description) -> Tokenizer | None:
    if not huggingface_tokenizer.is_there(path):
        return None
    if kind_of(path) == "slmjax 1":
        return load_tokenizer(path, as_saved=True)
    return huggingface_tokenizer.undo_changes(path, Values(description.tokenizer_changes, str(path)))


def _require_same_network(ours: ModelConfig, theirs: ModelConfig, path: Path) -> None:
    """UserError where config.json has been changed since slmjax.json was written."""
    different = list(ours.differences(theirs))
    if different:
        raise UserError(
            f"{path} has two descriptions that differ in {first_few(different)}: remove its slmjax.json to load "
            "what its config.json says."
        )
