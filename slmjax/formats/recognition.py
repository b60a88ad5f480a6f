"""Recognition of a path by its name and the keys of its small files, and the files of each kind of directory."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.inference.description import FILE_NAME, is_described
from slmjax.untrusted import inside, read_json

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_WEIGHTS = "params.safetensors"  # of a saved model before slmjax.json
CHECKPOINTS = "checkpoints"
# What the writers of models put into a directory, and nothing else; shards are model-<i>-of-<n>.safetensors.
MODEL_FILES = {FILE_NAME, CONFIG, "generation_config.json", "README.md", WEIGHTS, INDEX, OLD_WEIGHTS}
TEMPLATES = "additional_chat_templates"  # a directory of a tokenizer's templates beside the default one
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}
_TOKENIZER_FILES |= {"chat_template.jinja", TEMPLATES}
MODEL_FILES |= _TOKENIZER_FILES
ADAPTER_FILES = {
    ADAPTER_CONFIG,
    "adapter_model.safetensors",
    "adapter.safetensors",
    "README.md",
    "generation_config.json",
}
ADAPTER_FILES |= _TOKENIZER_FILES
_WEIGHTS_ALONE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz")

Kind = Literal["run", "checkpoint", "slmjax", "slmjax 1", "huggingface", "gguf", "peft", "adapterhub"]
MODELS: tuple[Kind, ...] = ("slmjax", "slmjax 1", "huggingface")
ADAPTERS: tuple[Kind, ...] = ("peft", "adapterhub")


def kind_of(path: Path) -> Kind | None:
    """The kind of thing at a path, None where it is none that is known; only small JSON files are read.

    A directory with an adapter's config and no model's weights is an adapter: a copy of its base's config may lie
    there. slmjax.json tells a run and a model of ours from transformers', whose config.json may lie beside it. What was
    written before it is told by its config.json: a run's sections, or the "format" that a saved model's has.
    """
    if path.is_file():
        return "gguf" if path.suffix.lower() == ".gguf" or _begins_as_gguf(path) else None
    if not path.is_dir():
        return None
    if (path / ADAPTER_CONFIG).is_file() and not any((path / name).exists() for name in (WEIGHTS, INDEX)):
        return "peft" if "peft_type" in read_json(inside(path, ADAPTER_CONFIG)) else "adapterhub"
    if (path / FILE_NAME).is_file():
        return "run" if read_json(inside(path, FILE_NAME)).get("kind") == "run" else "slmjax"
    if is_described(path):
        return "run"
    if (path / CONFIG).is_file():
        values = read_json(inside(path, CONFIG))
        if "format" in values:
            return "slmjax 1"
        return "huggingface" if {"model_type", "architectures"} & values.keys() else None
    step = path.resolve()
    if step.name.isdecimal() and step.parent.name == CHECKPOINTS and is_described(step.parent.parent):
        return "checkpoint"
    return None


def require_kind(path: str | Path) -> tuple[Path, Kind]:
    """A path and what it is; UserError where there is nothing, or nothing that can be read."""
    place = local_path(path, "The model")
    if not place.exists():
        raise UserError(f"There is no model at {place}.")
    kind = kind_of(place)
    if kind is None and place.is_file() and place.suffix in _WEIGHTS_ALONE:
        raise UserError(
            f"{place} holds weights alone: give its directory, {place.parent}, which has their {CONFIG} too."
        )
    if kind is None and place.is_file():
        raise UserError(
            f"{place} is a file: give a run's workdir, one of its checkpoints, a model's or adapter's directory, or a "
            ".gguf file."
        )
    if kind is None:
        raise UserError(
            f"{place} is not a run, a checkpoint, a model or an adapter: it has no {FILE_NAME}, and no {CONFIG} or "
            f"{ADAPTER_CONFIG} that says what it is."
        )
    return place, kind


def _begins_as_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def require_replaceable(directory: Path, kinds: Collection[Kind]) -> None:
    """UserError unless nothing lies at `directory`, or one of these kinds made of its own files alone."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: give a new directory.")
    ours = ADAPTER_FILES if set(kinds) <= set(ADAPTERS) else MODEL_FILES
    names = sorted(path.name for path in directory.iterdir())
    foreign = [name for name in names if name not in ours and not _is_shard(name)]
    if foreign or (names and kind_of(directory) not in kinds):
        raise UserError(
            f"{directory} holds {(foreign or names)[0]}, so it is not a saved "
            f"{'adapter' if ours is ADAPTER_FILES else 'model'} alone and is not replaced: choose another directory."
        )


def _is_shard(name: str) -> bool:
    return name.startswith("model-") and name.endswith(".safetensors")
