"""Block expansion, LLaMA-Pro (Wu et al. 2024, arXiv:2401.02415): new layers that begin as the identity."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.peft.targets import arrays_of, flatten, nested

_OUTPUTS = ("attention/o_proj", "feedforward/down_proj")  # zero in a new layer, which then adds nothing


def expand(config: ModelConfig, params: Any, new_layers: int) -> tuple[ModelConfig, Any, tuple[int, ...]]:
    """(config, params, numbers of the new layers) of the network with a copied layer after each L / n-th one.

    The expanded network computes what the base does until its new layers are trained: freeze the rest with
    `freeze.train` patterns of their numbers ("layers/5/.*"). UserError where the layers cannot be spread evenly, or
    where a layer whose sub-layers give zero is not the identity.
    """
    L = config.num_layers
    if new_layers < 1 or L % new_layers:
        raise UserError(f"{new_layers} new layers cannot be spread evenly over {L}: choose a divisor of {L}.")
    if len(config.layer_pattern) > 1 or len(config.rope_pattern) > 1:
        raise UserError("A network whose layers alternate cannot be expanded: copies would shift its pattern.")
    if config.norm_placement != "pre":
        raise UserError(f"A network with model.norm_placement={config.norm_placement!r} has no idle layer.")
    sources = [layer for layer in range(L) for _ in range(2 if (layer + 1) % (L // new_layers) == 0 else 1)]
    added = tuple(i for i in range(1, len(sources)) if sources[i] == sources[i - 1])

    def spread(value: Any) -> Any:
        return tuple(value[layer] for layer in sources) if isinstance(value, tuple) else value

    sizes = {name: spread(getattr(config, name)) for name in ("num_heads", "num_kv_heads", "ffn_dim")}
    larger = dataclasses.replace(config, num_layers=len(sources), **sizes)

    by_layer: dict[tuple[int, str], Any] = {}  # (layer, rest of the path) -> that layer's array
    flat: dict[str, Any] = {}
    leaves = flatten(params)
    for path, array in arrays_of(config, params).items():
        leaf = leaves[path]
        if not array.layers:
            flat[path] = leaf
        for place, layer in enumerate(array.layers):
            by_layer[layer, path.split("/", 2)[2]] = leaf[place]
    start = 0
    for s, segment in enumerate(larger.segments):
        for b in range(len(segment.period)):
            layers = [start + b + r * len(segment.period) for r in range(segment.repeats)]
            for rest in sorted({rest for layer, rest in by_layer if layer == sources[layers[0]]}):
                new = rest.startswith(_OUTPUTS)
                copies = [by_layer[sources[i], rest] * (0 if new and i in added else 1) for i in layers]
                flat[f"segment_{s}/block_{b}/{rest}"] = jnp.stack(copies)
        start += len(segment.period) * segment.repeats
    return larger, nested(flat), added
