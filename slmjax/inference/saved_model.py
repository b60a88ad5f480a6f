"""A model's own directory: config.json, params.safetensors, the tokenizer. Read with suspicion, written atomically."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.files import place_directory
from slmjax.inference.description import model_config_from, token_ids
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.sharding.rules import path_string
from slmjax.tokenization.tokenizer import STOP_IDS, Tokenizer
from slmjax.untrusted import read_json

FORMAT = "slmjax"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "params.safetensors"
DTYPES = ("float32", "bfloat16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def abstract_params(config: ModelConfig) -> Any:
    """Shapes and dtypes of a config's parameters, as nested dicts of jax.ShapeDtypeStruct."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]


def read_saved_config(directory: Path) -> ModelConfig:
    """The config of a directory that `write_saved` made."""
    values = read_json(directory / CONFIG)
    if values.get("format") != FORMAT:
        raise UserError(f"{directory / CONFIG} is of format {values.get('format')!r}, not {FORMAT!r}.")
    if values.get("version") != VERSION:
        raise UserError(f"{directory} is of version {values.get('version')!r}; this slmjax reads version {VERSION}.")
    return model_config_from(values.get("model"), directory / CONFIG)


def read_saved_params(directory: Path, config: ModelConfig) -> dict[str, Any]:
    """The parameters as nested dicts of jax.Array, in the dtype of the file; every name and shape must be the config's.

    The header is checked against the config before any array is read, so nothing larger than the model is allocated.
    """
    path = directory / WEIGHTS
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    wanted = {path_string(key): tuple(leaf.shape) for key, leaf in leaves}
    params: dict[str, Any] = {}
    with _open(path) as file:
        stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        wrong = [f"{name} is missing" for name in sorted(set(wanted) - set(stored))]
        wrong += [f"{name} is not expected" for name in sorted(set(stored) - set(wanted))]
        for name in sorted(set(wanted) & set(stored)):
            shape, dtype = tuple(stored[name].get_shape()), stored[name].get_dtype()
            if shape != wanted[name]:
                wrong.append(f"{name} has shape {list(shape)}, not {list(wanted[name])}")
            elif dtype not in _FLOATS:
                wrong.append(f"{name} is of dtype {dtype}, not one of {', '.join(_FLOATS)}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(f"{path} does not fit its config: {'; '.join(wrong[:3])}{more}.")
        for name in wanted:
            *rooms, last = name.split("/")
            node = params
            for room in rooms:
                node = node.setdefault(room, {})
            node[last] = file.get_tensor(name)
    return params


def saved_dtypes(directory: Path) -> list[str]:
    """The dtypes of a saved model's weights, from the file's header alone."""
    with _open(directory / WEIGHTS) as file:
        names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return sorted(_FLOATS.get(name, name) for name in names)


def read_saved_stop_ids(directory: Path) -> tuple[int, ...]:
    """The ids at which generation ends, none where the tokenizer's eos is all there is to say."""
    return token_ids(read_json(directory / CONFIG).get(STOP_IDS, []), STOP_IDS, directory / CONFIG)


def write_saved(
    config: ModelConfig, params: Any, tokenizer: Tokenizer, directory: Path, dtype: str, stop_ids: Sequence[int] = ()
) -> Path:
    """Write the directory, whole or not at all; what it replaces must be a model that this function wrote."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose {' or '.join(DTYPES)}.")
    directory = directory.resolve()
    _require_ours(directory)
    flat = {
        path_string(path): np.ascontiguousarray(np.asarray(leaf).astype(jnp.dtype(dtype)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    with place_directory(directory, lambda: False) as partial:
        tokenizer.save(partial)
        try:
            save_file(flat, partial / WEIGHTS)
        except SafetensorError as error:  # the system's error, as text alone
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error
        description = {"format": FORMAT, "version": VERSION, "model": config.to_dict(), STOP_IDS: list(stop_ids)}
        (partial / CONFIG).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return directory


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path.parent} is incomplete: {path.name} is missing.")
    try:
        return safe_open(path, framework="flax")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}).") from error


def _require_ours(directory: Path) -> None:
    """UserError where something lies that is not a saved model and nothing but that."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: give a new directory for the model.")
    names = {path.name for path in directory.iterdir()}
    ours = CONFIG in names and read_json(directory / CONFIG).get("format") == FORMAT
    if names and (not ours or names - {CONFIG, WEIGHTS, *_TOKENIZER_FILES}):
        raise UserError(f"{directory} holds something that is not a saved slmjax model: choose another directory.")
