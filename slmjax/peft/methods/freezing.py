"""Parameters cut in two: what is trained and what is frozen, whole arrays or some layers of a stack."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.peft.config import FreezeConfig
from slmjax.peft.targets import Array, Chosen, arrays_of, choose, flatten, nested


def chosen_by(config: FreezeConfig, model: ModelConfig, base: Any, new_layers: tuple[int, ...] = ()) -> Chosen:
    """The places that are trained, all of `new_layers` among them. UserError when they are none."""
    L = model.num_layers
    if config.first_layers + config.last_layers > L:
        raise UserError(
            f"peft.freeze trains the first {config.first_layers} and the last {config.last_layers} layers, but there "
            f"are {L} of them."
        )
    layers = [*range(config.first_layers), *range(L - config.last_layers, L), *new_layers]
    patterns = [*config.train, *(f"layers/{layer}/.*" for layer in layers)]
    if not patterns:
        raise UserError("peft.freeze trains nothing: set its train, first_layers or last_layers.")
    return choose(arrays_of(model, base), patterns, where="peft.freeze.train")


def partition(base: Any, arrays: dict[str, Array], chosen: Chosen) -> tuple[dict, dict]:
    """(chosen, rest) of the base parameters, both nested along the base's paths.

    Of a stack of which only some layers are chosen, each side has its layers, in order.
    """
    trained, rest = {}, {}
    for path, leaf in flatten(base).items():
        places, stack = chosen.get(path), arrays[path].layers
        if places is None:
            rest[path] = leaf
        elif len(places) == len(stack):
            trained[path] = leaf
        else:
            others = tuple(p for p in range(len(stack)) if p not in places)
            trained[path], rest[path] = leaf[np.asarray(places)], leaf[np.asarray(others)]
    return nested(trained), nested(rest)


def joined(trained: Any, rest: Any, chosen: Chosen) -> dict:
    """The whole parameters from their two parts; the inverse of `partition`."""
    ours, whole = flatten(trained), flatten(rest)
    for path, leaf in ours.items():
        if path in whole:  # some layers of a stack: back into the order of the layers
            stack = len(leaf) + len(whole[path])
            others = [p for p in range(stack) if p not in chosen[path]]
            order = np.argsort(np.asarray([*chosen[path], *others]))
            leaf = jnp.concatenate([leaf, whole[path].astype(leaf.dtype)])[order]
        whole[path] = leaf
    return nested(whole)


def layer_factors(model: ModelConfig, decay: float, trained: Any, arrays: dict[str, Array], chosen: Chosen) -> Any:
    """decay ** (L - 1 - layer) for each trained array, shaped to multiply it; the embeddings' is that below layer 0.

    Layer-wise learning-rate decay (Howard and Ruder 2018, arXiv:1801.06146, "discriminative fine-tuning"). Everything
    that is no layer's and no embedding's has factor 1.
    """
    factors: dict[str, Any] = {}
    for path, leaf in flatten(trained).items():
        layers = arrays[path].layers
        if layers:
            exponents = [model.num_layers - 1 - layers[place] for place in chosen.get(path, range(len(layers)))]
            factors[path] = np.float32(decay) ** np.asarray(exponents).reshape(-1, *(1,) * (leaf.ndim - 1))
        else:
            below = path.startswith(("embedder", "position_embedder", "embed_"))
            factors[path] = np.float32(decay**model.num_layers if below else 1.0)
    return nested(factors)
