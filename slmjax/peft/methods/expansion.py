"""Block expansion, LLaMA-Pro (Wu et al. 2024, arXiv:2401.02415): new layers that begin as the identity."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import flatten, layers_by_block, layers_of, unflatten, within_block

_OUTPUTS = ("attention/o_proj", "feedforward/down_proj")  # zero in a new layer, which then adds nothing


def expand(config: ModelConfig, params: Any, new_layers: int) -> tuple[ModelConfig, Any, tuple[int, ...]]:
    """(config, params, numbers of the new layers) of the network with a copied layer after each L / n-th one.

    The expanded network computes what the base does until its new layers are trained: `peft.expand` with the method
    freeze trains them alone. UserError where the layers cannot be spread evenly, or where a layer whose sub-layers
    give zero is not the identity.
    """
    larger, added = larger_config(config, new_layers)
    sources = _sources(config.num_layers, new_layers)
    by_layer: dict[tuple[int, str], Any] = {}  # (layer, rest of the path) -> that layer's array
    flat: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        layers = layers_of(config, path)
        if not layers:
            flat[path] = leaf
        for index, layer in enumerate(layers):
            by_layer[layer, within_block(path)] = leaf[index]
    for block, layers in layers_by_block(larger).items():
        for rest in sorted({rest for layer, rest in by_layer if layer == sources[layers[0]]}):
            new = rest.startswith(_OUTPUTS)
            copies = [by_layer[sources[i], rest] * (0 if new and i in added else 1) for i in layers]
            flat[f"{block}/{rest}"] = jnp.stack(copies)
    return larger, unflatten(flat), added


def larger_config(config: ModelConfig, new_layers: int) -> tuple[ModelConfig, tuple[int, ...]]:
    """The expanded network's config and the numbers of its new layers. UserError as `expand`."""
    L = config.num_layers
    if not 1 <= new_layers <= L or L % new_layers:
        raise UserError(f"{new_layers} new layers cannot be spread evenly over {L}: choose a divisor of {L}.")
    if len(config.layer_pattern) > 1 or len(config.rope_pattern) > 1:
        raise UserError("A network whose layers alternate cannot be expanded: copies would shift its pattern.")
    if config.norm_placement != "pre":
        raise UserError(
            f"A network with model.norm_placement={config.norm_placement!r} has no layer that can start as the "
            "identity: fine-tune it without peft.expand."
        )
    sources = _sources(L, new_layers)
    added = tuple(i for i in range(1, len(sources)) if sources[i] == sources[i - 1])

    def spread(value: Any) -> Any:
        return tuple(value[layer] for layer in sources) if isinstance(value, tuple) else value

    sizes = {name: spread(getattr(config, name)) for name in ("num_heads", "num_kv_heads", "ffn_dim")}
    return dataclasses.replace(config, num_layers=len(sources), **sizes), added


def unexpand(config: ModelConfig, new_layers: int) -> ModelConfig:
    """The config that `expand` made this one of."""
    sources = _sources(config.num_layers - new_layers, new_layers)
    kept = [i for i in range(len(sources)) if i == 0 or sources[i] != sources[i - 1]]

    def gather(value: Any) -> Any:
        return tuple(value[layer] for layer in kept) if isinstance(value, tuple) else value

    sizes = {name: gather(getattr(config, name)) for name in ("num_heads", "num_kv_heads", "ffn_dim")}
    return dataclasses.replace(config, num_layers=len(kept), **sizes)


def _sources(num_layers: int, new_layers: int) -> list[int]:
    """Of each layer of the expanded network, the base's layer that it is or is copied from."""
    return [i for i in range(num_layers) for _ in range(2 if (i + 1) % (num_layers // new_layers) == 0 else 1)]
