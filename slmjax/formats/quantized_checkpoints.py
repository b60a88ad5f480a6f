"""Recognition of checkpoints whose weights are quantized, so that they are named for what they are.

By what the config says, by the small files that a method leaves beside the weights, and by the names and dtypes of the
tensors: people load the one directory for the other by mistake, and configs get lost.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.safetensors_files import FLOATS

_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "modelopt",
    "quantization_map.json": "quanto",
    "qmodel.pt": "HQQ",
}
# The end of a tensor's name -> the method that has such tensors; of several the first.
_TENSORS = (
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|SCB|weight_format)", "bitsandbytes"),
    (r"\.g_idx", "GPTQ"),
    (r"\.(q_weight|q_scale|q_scale_max|q_groups|q_perm)", "EXL2"),
    (r"\.(trellis|suh|svh)", "EXL3"),
    (r"\.(weight_packed|weight_shape|weight_zero_point|weight_g_idx)", "compressed-tensors"),
    (r"\.(W_q|meta\..*)", "HQQ"),
    (r"\.(weight\._data|weight\._scale|weight\._shift|_data|_scale|input_scale|output_scale)", "quanto"),
    (r"\.(codebooks|codes)", "AQLM"),
    (r"\.(Qidxs|SU|SV|Wscale)", "QuIP#"),
    (r"_blocks", "MXFP4"),
    (r"\.weight_scales", "EETQ"),
    (r"\.(weight_scale_inv|weight_scale|weight_scale_2)", "fp8"),
    (r"\.(scales|biases)", "MLX"),
)
_REMEDY = (
    "which is not read: give the model that it was quantized from, or make its weights whole with transformers "
    "(from_pretrained, dequantize(), save_pretrained)"
)


def refuse_quantized(
    directory: Path, config: Mapping[str, Any], kinds: Mapping[str, str], expected: Collection[str]
) -> None:
    """UserError naming the method where the tensors are quantized.

    kinds: the dtype of each tensor, as safetensors writes it, under the family's names. expected: those that the
    network needs. Whole weights are read whatever the config says; then it is told.
    """
    whole = kinds.keys() >= set(expected) and all(kinds[name] in FLOATS for name in expected)
    method = method_in(config)
    if whole and kinds.keys() <= set(expected):
        if method is not None:
            warnings.warn(
                f"{directory} says that it is quantized by {method}, but its weights are whole.", stacklevel=4
            )
        return
    strange = {name: kind for name, kind in kinds.items() if name not in expected or kind not in FLOATS}
    method = method or _method_of_files(directory) or _method_of(strange, expected)
    if method is not None:
        raise UserError(f"{directory} is quantized by {method}, {_REMEDY}.")


def method_in(config: Mapping[str, Any]) -> str | None:
    """The method that a config.json names, None where it says nothing of quantization."""
    for key in ("quantization_config", "compression_config", "quantization"):
        values = config.get(key)
        if isinstance(values, Mapping) and values:
            named = values.get("quant_method") or values.get("quant_algo")
            if isinstance(named, str):
                return named[:40]
            if "load_in_4bit" in values or "load_in_8bit" in values:
                return "bitsandbytes"
            return "MLX" if {"group_size", "bits"} <= values.keys() else "a method that its config does not name"
    return None


def _method_of_files(directory: Path) -> str | None:
    return next((method for name, method in _FILES.items() if (directory / name).is_file()), None)


def _method_of(strange: Mapping[str, str], expected: Collection[str]) -> str | None:
    """The method of tensors that no whole checkpoint has."""
    ends = {name for name in strange if name not in expected}
    packed = any(name.endswith(".qweight") for name in ends)
    for pattern, method in _TENSORS:
        if any(re.search(f"{pattern}$", name) for name in ends):
            if packed and method not in ("GPTQ", "EXL2"):
                continue
            return method
    if packed:
        return "AWQ"
    kinds = {kind for name, kind in strange.items() if name in expected}
    if any(kind.startswith("F8") for kind in kinds):
        return "fp8"
    return "a method that its config does not name" if any(kind[0] in "IU" for kind in kinds) else None
