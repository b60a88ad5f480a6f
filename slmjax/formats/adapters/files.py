"""An adapter's directory on the disk: a JSON config and one file of float32 tensors, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.files import local_path, place_directory
from slmjax.formats.recognition import ADAPTER_CONFIG, ADAPTERS, require_replaceable
from slmjax.formats.safetensors_files import write_safetensors
from slmjax.formats.tensors import PlannedTensor

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
    more: Callable[[Path], None] = lambda directory: None,
) -> Path:
    """Write the config with sorted keys, the tensors in the file `weights`, and a README.md; returns the directory.

    more: writes what else belongs there.
    """
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    plan = [PlannedTensor(name, array.shape, array.dtype) for name, array in arrays.items()]
    with place_directory(directory) as partial:
        (partial / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        write_safetensors(partial, plan, arrays.items(), max_shard_bytes=1 << 62, name=weights)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        more(partial)
    return directory
