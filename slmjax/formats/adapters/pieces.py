"""Arrays of single layers, as other people's adapters have them, put on the stacks that our layers are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from slmjax.formats.weight_map import Leaf
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import layers_of, unflatten


class Misfit(Exception):  # noqa: N818 - not an error yet: the reader adds whose files they are
    """A size of the adapter that is not the base's, as a clause."""


class Pieces:
    """Arrays that an adapter adds, collected layer by layer."""

    def __init__(self):
        self.arrays: dict[str, dict[int | None, np.ndarray]] = {}

    def add(self, module: Leaf, name: str, array: np.ndarray) -> None:
        """One layer's array `name` of a module of ours."""
        self.arrays.setdefault(f"{module.path}/{name}", {})[module.repeat] = array

    def stacked(self, config: ModelConfig) -> dict[str, Any]:
        """The collection, float32. Smaller ranks are filled up with zeros; of LoRA a layer that is not adapted has
        scale 0, of IA3 factors of 1."""
        flat = {}
        for path, layers in self.arrays.items():
            if None in layers:
                flat[path] = jnp.asarray(layers[None], jnp.float32)
                continue
            shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in layers.values()), strict=True))
            stack = np.full((len(layers_of(config, path)), *shape), 1.0 if "/ia3_" in path else 0.0, np.float32)
            for repeat, array in layers.items():
                stack[(repeat, *(slice(size) for size in array.shape))] = array
            flat[path] = jnp.asarray(stack)
        return unflatten(flat)
