"""Selecting what is trained of a base: whole arrays, or some layers of a stack; all else is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, flatten, layers_of, unflatten
from slmjax.peft.config import PeftConfig
from slmjax.peft.targets import Chosen, arrays_of, choose


@dataclass(frozen=True)
class Selection:
    """The arrays of a network that are trained. `network` is needed for all but splitting and joining everything."""

    network: ModelConfig | None = None
    chosen: Chosen | None = field(default=None, compare=False)  # None: all of them

    def split(self, base: Params) -> tuple[Params, Params]:
        """(trained, frozen) of the base parameters, both nested along the base's paths.

        Of a stack of which only some layers are chosen, each side has its layers, in order.
        """
        if self.chosen is None:
            return base, {}
        trained, rest = {}, {}
        for path, leaf in flatten(base).items():
            indices, stack = self.chosen.get(path), self._layers(path)
            if indices is None:
                rest[path] = leaf
            elif len(indices) == len(stack):
                trained[path] = leaf
            else:
                others = tuple(i for i in range(len(stack)) if i not in indices)
                trained[path], rest[path] = leaf[np.asarray(indices)], leaf[np.asarray(others)]
        return unflatten(trained), unflatten(rest)

    def join(self, trained: Params, rest: Params) -> Params:
        """The whole parameters from their two parts; the inverse of `split`."""
        if self.chosen is None:
            return trained
        ours, whole = flatten(trained), flatten(rest)
        for path, leaf in ours.items():
            if path in whole:  # some layers of a stack: back into the order of the layers
                stack = len(leaf) + len(whole[path])
                others = [i for i in range(stack) if i not in self.chosen[path]]
                order = np.argsort(np.asarray([*self.chosen[path], *others]))
                leaf = jnp.concatenate([leaf, whole[path].astype(leaf.dtype)])[order]
            whole[path] = leaf
        return unflatten(whole)

    def layer_factors(self, decay: float, trained: Params) -> Params:
        """decay ** (L - 1 - layer) for each trained array, shaped to multiply it; decay ** L for embeddings.

        Layer-wise learning-rate decay (Howard and Ruder 2018, arXiv:1801.06146, "discriminative fine-tuning").
        What belongs neither to a layer nor to an embedding has factor 1.
        """
        assert self.network is not None
        factors: dict[str, Any] = {}
        for path, leaf in flatten(trained).items():
            layers = self._layers(path)
            if layers:
                indices = (self.chosen or {}).get(path, range(len(layers)))
                exponents = [self.network.num_layers - 1 - layers[i] for i in indices]
                factors[path] = np.float32(decay) ** np.asarray(exponents).reshape(-1, *(1,) * (leaf.ndim - 1))
            else:
                below = path.startswith(("embedder", "position_embedder", "embed_"))
                factors[path] = np.float32(decay**self.network.num_layers if below else 1.0)
        return unflatten(factors)

    def _layers(self, path: str) -> tuple[int, ...]:
        assert self.network is not None
        return layers_of(self.network, path)


ALL = Selection()


def select_named(patterns: tuple[str, ...], network: ModelConfig, base: Params) -> Selection:
    """The arrays that peft.train names. `base` may be shapes. UserError for a pattern that matches nothing."""
    return Selection(network, choose(arrays_of(network, base), patterns, where="peft.train") if patterns else {})


def select_frozen(config: PeftConfig, network: ModelConfig, base: Params) -> Selection:
    """The arrays that `freeze` trains: new, first and last layers, what peft.train names. UserError for none."""
    L, freeze = network.num_layers, config.freeze
    if freeze.first_layers + freeze.last_layers > L:
        raise UserError(
            f"peft.freeze trains the first {freeze.first_layers} and the last {freeze.last_layers} layers, but there "
            f"are {L} of them: lower peft.freeze.first_layers or peft.freeze.last_layers."
        )
    layers = [*range(freeze.first_layers), *range(L - freeze.last_layers, L), *config.new_layers]
    patterns = (*config.train, *(f"layers/{layer}/.*" for layer in layers))
    if not patterns:
        raise UserError(
            "peft.method=freeze trains nothing: set peft.train, peft.freeze.first_layers or peft.freeze.last_layers."
        )
    return select_named(patterns, network, base)
