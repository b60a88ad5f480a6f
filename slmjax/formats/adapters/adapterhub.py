"""Bottleneck adapters in the layout of AdapterHub's `adapters` library, both ways.

A directory of `save_adapter(..., use_safetensors=True)`: adapter_config.json (the library's BnConfig under "config")
and adapter.safetensors, in each layer `attention_adapters` (its mh_adapter) and `output_adapters`, of each
adapter_down.0 and adapter_up with weights as torch's Linear. Names and meaning were checked against adapters 1.3.

Ours see a sub-layer's own output: BnConfig with original_ln_before=False, which is its Houlsby (double_seq_bn) and our
pfeiffer with that one switch. Its own Pfeiffer (seq_bn) adds the residual stream to what the adapter sees, and its
parallel adapters see the stream before its norm: these compute something else and are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.adapters.adapter import Adapter
from slmjax.formats.adapters.files import require_place, write_adapter
from slmjax.formats.adapters.names import Names
from slmjax.formats.adapters.pieces import Misfit, Pieces
from slmjax.formats.recognition import ADAPTER_CONFIG
from slmjax.formats.safetensors_files import SafetensorsDirectory
from slmjax.formats.weight_map import Leaf, layer_leaf
from slmjax.models.parameters import Params, flatten
from slmjax.peft.options import Options
from slmjax.tokenization.tokenizer import Tokenizer

WEIGHTS = "adapter.safetensors"
PICKLE = "pytorch_adapter.bin"
# The families of decoders whose layers the library adapts at these two places.
FAMILIES = {"llama": "model.layers", "mistral": "model.layers", "gpt2": "transformer.h"}
_SUBLAYERS = {"attention_adapters": "attention", "output_adapters": "feedforward"}
_PARTS = {
    "adapter_down.0.weight": "adapter_down",
    "adapter_down.0.bias": "adapter_down_bias",
    "adapter_up.weight": "adapter_up",
    "adapter_up.bias": "adapter_up_bias",
}
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu", "relu2": "relu2"}
_ACTIVATIONS |= {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_OURS = {"silu": "swish", "relu": "relu", "gelu": "gelu", "relu2": "relu2", "gelu_tanh": "gelu_new"}
# What must hold for an adapter to be one of ours.
_REQUIRED: dict[str, Any] = {
    "original_ln_before": False,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
}
_REQUIRED |= {"is_parallel": False, "use_gating": False, "phm_layer": False, "cross_adapter": False}
_REQUIRED |= {"inv_adapter": None, "residual_before_ln": True}
_DEFAULTS = {"original_ln_before": False, "original_ln_after": True, "residual_before_ln": True}
_NAME = "slmjax"  # of the adapters that we write


@dataclass
class AdapterHubDirectory:
    """An adapter's config and tensors, by layer, sub-layer and part."""

    path: Path
    base: str | None
    name: str
    values: Mapping[str, Any]  # the BnConfig
    tensors: SafetensorsDirectory
    found: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)

    origin = "AdapterHub"
    method = "bottleneck"
    revision = None  # the library notes none

    def facts(self) -> dict[str, Any]:
        """Sizes and places."""
        layers, places = (sorted({at[i] for at in self.found}) for i in range(2))  # type: ignore[type-var]
        sizes = [self.tensors.tensors[parts["adapter_down"]].shape for parts in self.found.values()]
        return {"bottleneck": sorted({shape[0] for shape in sizes}), "sub_layers": places, "layers": len(layers)}

    def named(self) -> list[str]:
        """No module: its tensors name layers and places in them."""
        return []

    def read(self, names: Names, params: Params, where: str) -> Adapter:
        """The adapter as something to add to the base `where`. UserError naming what is missing or of another size."""
        config, pieces = names.config, Pieces()
        left_out = self.values.get("leave_out") or []
        sublayers = [
            s for key, s in (("mh_adapter", "attention"), ("output_adapter", "feedforward")) if self.values.get(key)
        ]
        expected = {(i, s) for i in range(config.num_layers) if i not in left_out for s in sublayers}
        if beyond := sorted(at for at in self.found if at[0] >= config.num_layers):
            raise UserError(f"{self.path} adapts layer {beyond[0][0]}, but {where} has {config.num_layers} layers.")
        if lacking := sorted(expected - self.found.keys()):
            raise UserError(f"{self.path} is incomplete: it has nothing for layer {lacking[0][0]}'s {lacking[0][1]}.")
        for (layer, sublayer), tensors in self.found.items():
            if missing := sorted(set(_PARTS.values()) - tensors.keys()):
                raise UserError(f"{self.path} is incomplete: {missing[0]} of layer {layer}'s {sublayer} is missing.")
            arrays = {part: np.asarray(self.tensors.read(name), np.float32) for part, name in tensors.items()}
            at = layer_leaf(config, layer, sublayer)
            try:
                _add(pieces, at, arrays, config.embed_dim)
            except Misfit as misfit:
                raise UserError(f"{self.path} is an adapter of another base than {where}: {misfit}.") from misfit
        activation = _ACTIVATIONS[self.values["non_linearity"]]
        options = Options(activation=activation, scale=float(self.values.get("scaling", 1.0)))
        return Adapter("adapter", pieces.stacked(config), options)


def open_adapterhub(directory: Path, values: Mapping[str, Any]) -> AdapterHubDirectory:
    """Config and header of a directory; UserError for what is not a bottleneck adapter like ours."""
    path = directory / ADAPTER_CONFIG
    config = values.get("config")
    if not isinstance(config, dict) or "reduction_factor" not in config or "non_linearity" not in config:
        raise UserError(f"{path} is neither peft's nor that of a bottleneck adapter of AdapterHub.")
    for key, wanted in _REQUIRED.items():
        if (value := config.get(key, _DEFAULTS.get(key))) != wanted and not (not value and not wanted):
            raise UserError(f"{path}: {key} is {str(value)[:40]}; only adapters with {key}={wanted} can be read.")
    left_out = config.get("leave_out") or []
    if not isinstance(left_out, list):
        raise UserError(f"{path}: leave_out is {str(left_out)[:40]}; it must be a list of layers.")
    activation = config["non_linearity"]
    is_known = isinstance(activation, str) and activation in _ACTIVATIONS
    if not isinstance(config.get("scaling", 1.0), int | float) or not is_known:
        shown = f"scaling {str(config.get('scaling'))[:40]!r} and non_linearity {str(config['non_linearity'])[:40]!r}"
        known = ", ".join(_ACTIVATIONS)
        raise UserError(f"{path} has {shown}; a number and one of {known} can be read.")
    if not (directory / WEIGHTS).exists() and (directory / PICKLE).exists():
        raise UserError(
            f"{directory} holds its weights only in {PICKLE}, a pickle, which could run code when it is read: save the "
            "adapter again with use_safetensors=True."
        )
    name, base = values.get("name"), values.get("model_name")
    opened = AdapterHubDirectory(
        directory,
        base if isinstance(base, str) and base else None,
        name if isinstance(name, str) else "",
        config,
        SafetensorsDirectory(directory, WEIGHTS),
    )
    for tensor in opened.tensors.shapes():
        pattern = r"(?:.*\.)?(\d{1,9})\.(\w+_adapters)\.adapters\.(.+?)\.(adapter_(?:down\.0|up)\.(?:weight|bias))"
        match = re.fullmatch(pattern, tensor)
        if match is None or match[2] not in _SUBLAYERS or match[3] != opened.name:
            raise UserError(f"{directory / WEIGHTS}: the tensor {tensor[:120]} is not expected.")
        at = int(match[1]), _SUBLAYERS[match[2]]
        opened.found.setdefault(at, {})[_PARTS[match[4]]] = tensor
    if not opened.found:
        raise UserError(f"{directory / WEIGHTS} holds no tensors.")
    return opened


def _add(pieces: Pieces, at: Leaf, arrays: dict[str, np.ndarray], width: int) -> None:
    m = arrays["adapter_down_bias"].size
    wanted = {
        "adapter_down": (m, width),
        "adapter_down_bias": (m,),
        "adapter_up": (width, m),
        "adapter_up_bias": (width,),
    }
    for part, array in arrays.items():
        if array.shape != wanted[part]:
            raise Misfit(f"{part} is {list(array.shape)} there, {list(wanted[part])} here")
        pieces.add(at, part, array.T)


def save_adapterhub(
    adapter: Adapter, names: Names, path: str | Path, *, base_name: str, tokenizer: Tokenizer | None = None
) -> Path:
    """Write the directory, whole or not at all; returns it. UserError for what the library would compute otherwise."""
    directory = require_place(path)
    config, options, model_type = names.config, adapter.options, names.family.model_type
    if adapter.method != "adapter":
        raise UserError(f"AdapterHub's layout is for bottleneck adapters, not for peft.method={adapter.method}.")
    if adapter.whole:
        raise UserError("AdapterHub keeps no arrays of the base beside an adapter: peft.train cannot be written.")
    if options.parallel:
        raise UserError(
            "AdapterHub's parallel adapters see the residual stream before its norm, ours the sub-layer's own input: "
            "they compute different things, so that ours cannot be written for it."
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"AdapterHub does not adapt {model_type} where our adapters stand: it must be {' or '.join(FAMILIES)}."
        )
    tensors: dict[str, np.ndarray] = {}
    added = flatten(adapter.added)
    theirs = {ours: name for name, ours in _SUBLAYERS.items()}
    used = [s for s in ("attention", "feedforward") if any(f"/{s}/adapter_down" in path for path in added)]
    for layer in range(config.num_layers):
        for sublayer in used:
            at = layer_leaf(config, layer, sublayer)
            prefix = f"{FAMILIES[model_type]}.{layer}.{theirs[sublayer]}.adapters.{_NAME}"
            for part, ours in _PARTS.items():
                tensors[f"{prefix}.{part}"] = np.asarray(added[f"{at.path}/{ours}"][at.repeat], np.float32).T
    m = next(array.shape[0] for name, array in tensors.items() if name.endswith("adapter_down.0.weight"))
    values: dict[str, Any] = {
        **_REQUIRED,
        "mh_adapter": "attention" in used,
        "output_adapter": "feedforward" in used,
        "reduction_factor": _reduction(config.embed_dim, m),
        "non_linearity": _OURS[options.activation],
        "scaling": float(options.scale),
        "adapter_residual_before_ln": False,
        "inv_adapter_reduction_factor": None,
        "init_weights": "bert",
        "leave_out": [],
        "dropout": 0.0,
        "stochastic_depth": 0.0,
    }
    about = {"config": values, "hidden_size": config.embed_dim, "model_class": names.family.architecture}
    about |= {"model_name": base_name, "model_type": model_type, "name": _NAME, "version": "adapters.1.0.0"}
    beside: dict[str, Any] = {"tokenizer": tokenizer, "context_length": names.config.context_length}
    return write_adapter(directory, about, WEIGHTS, tensors, **beside)


def _reduction(width: int, m: int) -> float | int:
    """A reduction_factor of which width // factor is m, as the library counts it."""
    candidates = (width // m, width / m, math.nextafter(width / m, 0.0))
    return next(factor for factor in candidates if int(width // factor) == m)
