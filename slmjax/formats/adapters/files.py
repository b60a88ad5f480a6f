"""An adapter's directory on the disk: a JSON config and one file of float32 tensors, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.files import local_path, place_directory
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.recognition import ADAPTER_CONFIG, ADAPTERS, require_replaceable
from slmjax.formats.safetensors_files import write_safetensors
from slmjax.formats.tensors import PlannedTensor
from slmjax.tokenization.tokenizer import Tokenizer

Tensors = dict[str, np.ndarray]


def require_place(path: str | Path) -> Path:
    """The directory that an adapter may be written to. UserError where something else than an adapter lies there."""
    directory = local_path(path, "The destination").resolve()
    require_replaceable(directory, ADAPTERS)
    return directory


def write_adapter(
    directory: Path,
    values: Mapping[str, Any],
    weights: str,
    tensors: Tensors,
    *,
    card: str | None = None,
    tokenizer: Tokenizer | None = None,
    context_length: int = 0,
) -> Path:
    """Write the config with sorted keys, the tensors in the file `weights`, and a README.md; returns the directory.

    tokenizer: the fine-tune's own, for a model of this context; None: it has its base's.
    """
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    plan = [PlannedTensor(name, array.shape, array.dtype) for name, array in arrays.items()]
    with place_directory(directory) as partial:
        (partial / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        write_safetensors(partial, plan, arrays.items(), max_shard_bytes=1 << 62, name=weights)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        if tokenizer is not None:
            huggingface_tokenizer.write(tokenizer, partial, context_length)
    return directory
