"""A Hugging Face directory as a language model; see `export.py` for the way back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.formats.catalog import require_float
from slmjax.formats.facts import describe_tokenizer
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.huggingface.families import family_of
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.quantized_checkpoints import method_in, refuse_quantized
from slmjax.formats.recognition import CONFIG, kind_of
from slmjax.formats.safetensors_files import SafetensorsDirectory
from slmjax.formats.tensor_names import own_names
from slmjax.formats.weight_map import check_tensors, read_params, shardings_of
from slmjax.inference.generation_settings import read_settings, stop_ids_from, without_known
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.untrusted import inside, read_json


@dataclass(frozen=True)
class NamedTensors:
    """A directory's tensors under the names that the family's entries use, without what is no parameter."""

    file: SafetensorsDirectory
    names: Mapping[str, str]  # ours -> the file's

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor and its shape."""
        shapes = self.file.shapes()
        return {name: shapes[theirs] for name, theirs in self.names.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, a view of its file."""
        return self.file.read(self.names[name])

    def kinds(self) -> dict[str, str]:
        """Every tensor and its dtype, as safetensors writes it."""
        return {name: self.file.tensors[theirs].kind for name, theirs in self.names.items()}


@dataclass(frozen=True)
class HuggingFaceDirectory:
    """A directory that has been found whole, before any array is read."""

    path: Path
    values: dict[str, Any]  # of its config.json
    family: HuggingFaceFamily
    config: ModelConfig
    tensors: NamedTensors


def is_huggingface(path: Path) -> bool:
    """Whether a path is a directory of transformers, or one of ours that transformers reads too."""
    kind = kind_of(path)
    return kind == "huggingface" or (kind == "slmjax" and (path / CONFIG).is_file())


def open_huggingface(directory: str | Path) -> HuggingFaceDirectory:
    """Read a directory's config and headers; its tensors are all that the config's network has, and no others.

    No code of the directory is run: an architecture is known by its model_type, or refused.
    """
    directory = local_path(directory, "The model")
    values = read_json(inside(directory, CONFIG))
    family = family_of(values.get("model_type"))
    try:
        config = family.config_from(values)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"{directory / CONFIG} describes a {family.model_type} that cannot be read ({error})."
        ) from error
    tensors = _named(_file(directory, values), family, config)
    refuse_quantized(directory, values, tensors.kinds(), _needed(config, family, tensors))
    config, tensors = _resolve_head(config, family, tensors)
    check_tensors(config, family.entries(config), tensors, str(directory))
    return HuggingFaceDirectory(directory, values, family, config, tensors)


def load_huggingface(
    path: str | Path, *, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None
) -> LanguageModel:
    """A model of transformers: its config, parameters, tokenizer, and the ids at which its generation stops.

    mesh: to put each array's parts on; None is the first device. dtype: of the arrays, the file's when None. Read
    tensor by tensor, and on a mesh only what this process holds.
    """
    place = open_huggingface(path)
    tokenizer = huggingface_tokenizer.read(place.path) if huggingface_tokenizer.is_there(place.path) else None
    stops = stop_ids(place, tokenizer)
    return LanguageModel(
        config=place.config,
        params=read_weights(place, mesh, dtype),
        tokenizer=tokenizer,
        stop_ids=stops,
        generation=without_known(read_settings(place.path, place.values), tokenizer, stops),
        path=str(path),
    )


def describe_huggingface(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The network of a directory of transformers, and what else is there; no array is read."""
    place = open_huggingface(path)
    file = place.tensors.file
    facts: dict[str, Any] = {"kind": f"Hugging Face directory ({place.family.model_type})"}
    facts |= {"dtype": ", ".join(file.dtypes()), "files": len(file.paths), "file_bytes": file.num_bytes()}
    try:
        tokenizer = huggingface_tokenizer.read(place.path)
        facts |= describe_tokenizer(tokenizer) | {"stop_ids": list(stop_ids(place, tokenizer))}
    except UserError:
        facts |= describe_tokenizer(None)
    return place.config, facts


def read_weights(
    place: HuggingFaceDirectory,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    *,
    config: ModelConfig | None = None,
) -> Params:
    """The parameters of an opened directory; see `read_params`. config: another of the same function."""
    require_float(dtype)
    config = config or place.config
    entries = place.family.entries(config)
    return read_params(config, entries, place.tensors, dtype=dtype, shardings=shardings_of(config, mesh))


def stop_ids(place: HuggingFaceDirectory, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's, else config.json's, and the tokenizer's own."""
    return stop_ids_from(read_settings(place.path, place.values), tokenizer, place.config.vocab_size)


def _file(directory: Path, values: dict[str, Any]) -> SafetensorsDirectory:
    """The weights' files; one that cannot be read because it is quantized says so."""
    try:
        return SafetensorsDirectory(directory)
    except UserError as error:
        if (method := method_in(values)) is None:
            raise
        raise UserError(f"{str(error).rstrip('.')}; {directory} is quantized by {method}.") from error


def _named(file: SafetensorsDirectory, family: HuggingFaceFamily, config: ModelConfig) -> NamedTensors:
    """Other spellings of the family's names undone; what it ignores left out.

    Of a tied model that has its table under the head's name alone, the head is the table.
    """
    table, head = _ends(config, family)
    names = own_names(file.shapes(), family, {*(entry.name for entry in family.entries(config)), head or table})
    if config.tie_embeddings and head in names and table not in names:
        names = {table if name == head else name: theirs for name, theirs in names.items()}
    return NamedTensors(file, names)


def _ends(config: ModelConfig, family: HuggingFaceFamily) -> tuple[str, str | None]:
    """The family's names of the token table and of the head, where it has one; whether or not they are tied here."""
    untied = family.entries(dataclasses.replace(config, tie_embeddings=False))
    table = next(entry.name for entry in untied if entry.leaves[0].path == "embedder/embedding")
    return table, next((entry.name for entry in untied if entry.leaves[0].path == "lm_head/kernel"), None)


def _needed(config: ModelConfig, family: HuggingFaceFamily, tensors: NamedTensors) -> set[str]:
    """The tensors of the network, a tied one's head among them where the file repeats it."""
    _, head = _ends(config, family)
    return {*(entry.name for entry in family.entries(config)), *({head} & tensors.names.keys())}  # type: ignore[arg-type]


def _resolve_head(
    config: ModelConfig, family: HuggingFaceFamily, tensors: NamedTensors
) -> tuple[ModelConfig, NamedTensors]:
    """Drop a head that a tied model's file repeats. Where it differs from the embedding, the model is not tied."""
    if not config.tie_embeddings:
        return config, tensors
    embedding, head = _ends(config, family)
    if head is None or head not in tensors.names or embedding not in tensors.names:
        return config, tensors
    if _equal(tensors.read(embedding), tensors.read(head)):
        return config, NamedTensors(tensors.file, {k: v for k, v in tensors.names.items() if k != head})
    warnings.warn(f"{head} is not the embedding, though the config ties them: they are kept apart.", stacklevel=4)
    return dataclasses.replace(config, tie_embeddings=False), tensors


def _equal(a: np.ndarray, b: np.ndarray, rows: int = 4096) -> bool:
    return a.shape == b.shape and all(
        np.array_equal(a[start : start + rows], b[start : start + rows]) for start in range(0, len(a), rows)
    )
