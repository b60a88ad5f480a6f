"""Models in GGUF files, the format of llama.cpp: loaded ready to run, and written.

Source: ggml's docs/gguf.md; conventions of llama.cpp's converter from Hugging Face.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.formats import catalog
from slmjax.formats.facts import describe_tokenizer
from slmjax.formats.gguf import rope as gguf_rope
from slmjax.formats.gguf.architectures import config_from, config_to, entries_of
from slmjax.formats.gguf.blocks import BLOCK_TYPES, BlockType
from slmjax.formats.gguf.ends import settings_from, settings_to, stop_ids_from, stop_ids_to
from slmjax.formats.gguf.file import GgufFile, open_gguf
from slmjax.formats.gguf.tokenizer import NO_TOKENIZER, has_tokenizer, tokenizer_from, tokenizer_to
from slmjax.formats.gguf.writer import write_gguf
from slmjax.formats.tensors import PlannedTensor
from slmjax.formats.weight_map import check_tensors, joined_shapes, read_params, shardings_of, write_tensors
from slmjax.inference.language_model import LanguageModel, require_plain
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters

# dtype -> the type of a file's blocks, and llama.cpp's number for the whole file (general.file_type)
_FILES: dict[str, tuple[BlockType, int]] = {
    "float32": (BLOCK_TYPES["F32"], 0),
    "bfloat16": (BLOCK_TYPES["BF16"], 32),
    "float16": (BLOCK_TYPES["F16"], 1),
    "q8_0": (BLOCK_TYPES["Q8_0"], 7),
    "q5_1": (BLOCK_TYPES["Q5_1"], 9),
    "q5_0": (BLOCK_TYPES["Q5_0"], 8),
    "q4_1": (BLOCK_TYPES["Q4_1"], 3),
    "q4_0": (BLOCK_TYPES["Q4_0"], 2),
}
assert tuple(_FILES) == catalog.GGUF.dtypes
_QUANTIZATION_VERSION = 2


def load_gguf(path: str | Path, *, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None) -> LanguageModel:
    """A file's network, parameters, tokenizer, and the ids that end a text or turn.

    mesh: parameters are sharded over it by the rules; None puts them on the first device. dtype: of the parameters;
    None: float32, which every type of GGUF is decoded to.

    Raises:
        UserError: the file is damaged, inconsistent, or holds what is not supported; nothing large is allocated before.
    """
    path = local_path(path, "The model")
    file = open_gguf(path)
    config = read_config(file)
    found = entries_of(config, file.metadata, file.tensors, str(path))
    weights = _without_constants(file)
    check_tensors(config, found, weights, str(path))
    tokenizer = tokenizer_from(file.metadata, str(path)) if has_tokenizer(file.metadata) else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path} has {tokenizer.vocab_size} tokens but embeds {config.vocab_size}.")
    return LanguageModel(
        config=config,
        params=read_params(config, found, weights, dtype=dtype or "float32", shardings=shardings_of(config, mesh)),
        tokenizer=tokenizer,
        stop_ids=stop_ids_from(file.metadata, tokenizer, config.vocab_size, str(path)),
        generation=settings_from(file.metadata, str(path)),
        path=str(path),
    )


def describe_gguf(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """A file's network, and what else it holds; no weight is read."""
    file = open_gguf(path)
    facts: dict[str, Any] = {"kind": f"GGUF file ({file.metadata.get('general.architecture')})"}
    facts |= {"dtype": ", ".join(sorted({info.kind.name for info in file.tensors.values()}))}
    facts |= {"files": len(file.maps)} if len(file.maps) > 1 else {}
    facts |= {"file_bytes": sum(part.stat().st_size for part in file.maps)}
    tokenizer = tokenizer_from(file.metadata, str(path)) if has_tokenizer(file.metadata) else None
    return read_config(file), facts | describe_tokenizer(tokenizer)


def read_config(file: GgufFile) -> ModelConfig:
    """The network of a parsed file; no weight is read."""

    def constant(name: str) -> np.ndarray | None:
        return file.read(name) if name in file.tensors else None

    return config_from(file.metadata, file.shapes(), constant, str(file.path))


def save_gguf(
    lm: LanguageModel, path: str | Path, *, dtype: str | None = None, name: str = "", license: str = ""
) -> Path:
    """Write a model for llama.cpp, whole or not at all; an existing GGUF file is replaced. Returns the path.

    dtype: one of catalog.GGUF's, of every matrix; None: float16. Vectors and norms are float32; the embedding and the
    head of a quantized file are q8_0, and what no row of 32 fits is float16. name: general.name, else the file's.
    license: general.license, an SPDX identifier in lower case.

    Raises:
        UserError: no architecture of GGUF expresses the network, or its tokenizer has no name there.
    """
    require_plain(lm)
    dtype = dtype or "float16"
    if dtype not in _FILES:
        raise UserError(f"The dtype is {dtype!r}; choose one of {', '.join(_FILES)}.")
    path, config = local_path(path, "The destination"), lm.config
    model, kind = config_to(config), _FILES[dtype][0]
    _warn_of_windows(config, model.metadata["general.architecture"])
    plans = [
        PlannedTensor(entry.name, shape, _kind(entry.name, shape, kind))
        for entry, shape in zip(model.entries, joined_shapes(config, model.entries), strict=True)
    ]
    constants = [PlannedTensor(key, value.shape, BLOCK_TYPES["F32"]) for key, value in model.constants.items()]
    metadata: dict[str, Any] = {
        **model.metadata,
        "general.type": "model",
        "general.name": name or path.stem,
        "general.size_label": _size_label(count_parameters(config).total),
        "general.file_type": _FILES[dtype][1],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **(NO_TOKENIZER if lm.tokenizer is None else tokenizer_to(lm.tokenizer, config.vocab_size)),
    }
    metadata |= stop_ids_to(lm.stop_ids, lm.tokenizer, metadata) | settings_to(lm.generation)
    if license:
        metadata["general.license"] = license

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from model.constants.items()
        yield from write_tensors(lm.params, model.entries)

    write_gguf(path, metadata, constants + plans, tensors())
    return path


def _warn_of_windows(config: ModelConfig, arch: str) -> None:
    """The window is in the file, for us and others, but llama.cpp lets these architectures attend to everything."""
    is_cut = any(s.window and s.window < config.context_length for s in config.layers)
    if is_cut and arch == "exaone4" and config.num_layers != 64:
        warnings.warn(
            "llama.cpp ignores the attention window of architecture exaone4 where there are not 64 layers, and lets "
            "all of them rotate: it will compute something else.",
            stacklevel=3,
        )
    if is_cut and arch in ("llama", "phi3", "starcoder2"):
        warnings.warn(
            f"llama.cpp ignores the attention window of architecture {arch}: beyond {config.window} tokens it will "
            "compute something else.",
            stacklevel=3,
        )


def _without_constants(file: GgufFile) -> GgufFile:
    """The file without the tensors that are no weights: rotary divisors, which the config holds."""

    def is_weight(name: str) -> bool:
        return name not in gguf_rope.TENSORS and not name.endswith(".attn_rot_embd")

    tensors = {name: info for name, info in file.tensors.items() if is_weight(name)}
    return dataclasses.replace(file, tensors=tensors)


def _kind(name: str, shape: tuple[int, ...], kind: BlockType) -> BlockType:
    """The type that a tensor is written as in a file of this kind."""
    if len(shape) == 1 or name.endswith("norm.weight"):
        return BLOCK_TYPES["F32"]
    if kind.size == 1:
        return kind
    if shape[-1] % kind.size:
        return BLOCK_TYPES["F16"]
    return BLOCK_TYPES["Q8_0"] if name in ("token_embd.weight", "output.weight") else kind


def _size_label(parameters: int) -> str:
    """135M, 1.7B: as llama.cpp's files are named."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            value = parameters / size
            return f"{value:.1f}{unit}" if value < 10 and unit == "B" else f"{value:.0f}{unit}"
    return str(parameters)
