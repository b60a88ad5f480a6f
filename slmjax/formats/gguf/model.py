"""Models in GGUF files, the format of llama.cpp: loaded ready to run, and written.

Source: ggml's docs/gguf.md; conventions of llama.cpp's converter from Hugging Face.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.formats.gguf import rope as gguf_rope
from slmjax.formats.gguf.architectures import config_from, config_to, entries_of
from slmjax.formats.gguf.blocks import BLOCK_TYPES, BlockType
from slmjax.formats.gguf.file import GgufFile, TensorInfo, open_gguf
from slmjax.formats.gguf.tokenizer import stop_ids_from, tokenizer_from, tokenizer_to
from slmjax.formats.gguf.writer import TensorPlan, write_gguf
from slmjax.formats.weight_map import (
    Entry,
    abstract_leaves,
    check_tensors,
    read_params,
    write_tensors,
)
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.sharding.rules import spec_for
from slmjax.tokenization.tokenizer import Tokenizer

# dtype of a file -> llama.cpp's number for it (general.file_type)
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q8_0": 7}
_QUANTIZATION_VERSION = 2


def load_gguf(
    path: str | Path, *, mesh: jax.sharding.Mesh | None = None, dtype: Any = None
) -> tuple[ModelConfig, dict[str, Any], Tokenizer, tuple[int, ...]]:
    """A file's network, its parameters (nested dict of jax.Array), its tokenizer and the ids that end a text or turn.

    mesh: parameters are sharded over it by the rules; None puts them on the first device. dtype: of the parameters;
    None: float32, which every type of GGUF is decoded to.

    Raises:
        UserError: the file is damaged, lies, or holds what is not supported; nothing large is allocated before.
    """
    path = Path(path).expanduser()
    file = open_gguf(path)
    config = read_config(file)
    found = entries_of(config, file.metadata, file.tensors, str(path))
    weights = _without_constants(file)
    check_tensors(config, found, weights, str(path))
    tokenizer = tokenizer_from(file.metadata, str(path))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path} has {tokenizer.vocab_size} tokens but embeds {config.vocab_size}.")
    shardings = None
    if mesh is not None:
        leaves = abstract_leaves(config).items()
        shardings = {p: jax.sharding.NamedSharding(mesh, spec_for(p, leaf.shape, mesh)) for p, leaf in leaves}
    params = read_params(config, found, weights, dtype=np.float32 if dtype is None else dtype, shardings=shardings)
    return config, params, tokenizer, stop_ids_from(file.metadata, tokenizer, str(path))


def read_config(file: GgufFile) -> ModelConfig:
    """The network of a parsed file; no weight is read."""

    def constant(name: str) -> np.ndarray | None:
        return file.read(name) if name in file.tensors else None

    return config_from(file.metadata, file.shapes(), constant, str(file.path))


def save_gguf(
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    path: str | Path,
    dtype: str = "f16",
    *,
    name: str = "",
    license: str = "",
) -> Path:
    """Write a model for llama.cpp, whole or not at all; an existing GGUF file is replaced. Returns the path.

    dtype: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1, of every matrix. Vectors and norms are float32; the embedding
    and the head of a quantized file are q8_0, and what no row of 32 fits is f16. name: general.name, else the file's.
    license: general.license, an SPDX identifier in lower case.

    Raises:
        UserError: no architecture of GGUF expresses the network, or its tokenizer has no name there.
    """
    if dtype not in FILE_TYPES:
        raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(FILE_TYPES)}.")
    path = Path(path).expanduser()
    model = config_to(config)
    _warn_of_windows(config, model.metadata["general.architecture"])
    plans = [
        TensorPlan(entry.name, shape, _kind(entry.name, shape, dtype))
        for entry, shape in zip(model.entries, _shapes(config, model.entries), strict=True)
    ]
    constants = [TensorPlan(key, value.shape, BLOCK_TYPES["F32"]) for key, value in model.constants.items()]
    metadata: dict[str, Any] = {
        **model.metadata,
        "general.type": "model",
        "general.name": name or path.stem,
        "general.size_label": _size_label(count_parameters(config).total),
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **tokenizer_to(tokenizer, config.vocab_size),
    }
    if license:
        metadata["general.license"] = license

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from model.constants.items()
        yield from write_tensors(params, model.entries)

    write_gguf(path, metadata, constants + plans, tensors())
    return path


def _warn_of_windows(config: ModelConfig, arch: str) -> None:
    """The window is in the file, for us and others, but llama.cpp lets these architectures attend to everything."""
    if arch in ("llama", "phi3") and any(s.window and s.window < config.context_length for s in config.layers):
        warnings.warn(
            f"llama.cpp ignores the attention window of architecture {arch}: beyond {config.window} tokens it will "
            "compute something else.",
            stacklevel=3,
        )


def _without_constants(file: GgufFile) -> GgufFile:
    """The file without the tensors that are no weights: rotary divisors, which the config holds."""

    def is_weight(name: str) -> bool:
        return name not in gguf_rope.TENSORS and not name.endswith(".attn_rot_embd")

    tensors: dict[str, TensorInfo] = {name: info for name, info in file.tensors.items() if is_weight(name)}
    return GgufFile(file.path, file.metadata, tensors, file.map)


def _shapes(config: ModelConfig, found: list[Entry]) -> Iterator[tuple[int, ...]]:
    """The shape of each tensor that will be written."""
    leaves = abstract_leaves(config)
    for entry in found:
        one_layer = [leaves[leaf.path].shape[leaf.repeat is not None :] for leaf in entry.leaves]
        yield entry.join([np.zeros(shape, np.uint8) for shape in one_layer]).shape


def _kind(name: str, shape: tuple[int, ...], dtype: str) -> BlockType:
    """The type that a tensor is written as."""
    if len(shape) == 1 or name.endswith("norm.weight"):
        return BLOCK_TYPES["F32"]
    kind = BLOCK_TYPES[dtype.upper()]
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
