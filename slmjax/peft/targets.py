"""Selecting arrays of a network by name, by regular expression, by layer, or as "all-linear"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, flatten, is_matrix, layers_of, within_block
from slmjax.peft.config import ALL_LINEAR

Chosen = dict[str, tuple[int, ...]]  # path -> indices in the stack (ascending); () for what belongs to no layer


@dataclass(frozen=True)
class Array:
    """One array of the parameters: all layers of a stack, or one that belongs to no layer."""

    path: str  # "segment_0/block_0/attention/q_proj/kernel"
    shape: tuple[int, ...]  # of one layer
    layers: tuple[int, ...]  # the network's layer numbers along the stack; () where there is none

    def names(self) -> tuple[str, ...]:
        """The names that patterns are matched with, one per index: "layers/3/attention/q_proj/kernel"."""
        if not self.layers:
            return (self.path,)
        return tuple(f"layers/{layer}/{within_block(self.path)}" for layer in self.layers)


def arrays_of(config: ModelConfig, params: Params) -> dict[str, Array]:
    """Every array of the parameters (or of their shapes) by path."""
    arrays = {}
    for path, leaf in flatten(params).items():
        layers = layers_of(config, path)
        arrays[path] = Array(path, tuple(leaf.shape[1:] if layers else leaf.shape), layers)
    return arrays


def matrices_of(config: ModelConfig, params: Params) -> dict[str, Array]:
    """The modules that hold a matrix, by the module's path: weight products, lookup tables, the head."""
    matrices = {}
    for path, array in arrays_of(config, params).items():
        if is_matrix(path):
            module = path.rpartition("/")[0]
            matrices[module] = Array(module, array.shape, array.layers)
    return matrices


def choose(
    arrays: Mapping[str, Array],
    wanted: Sequence[str],
    *,
    where: str,
    exclude: Sequence[str] = (),
    layers: Iterable[int] | None = None,
) -> Chosen:
    """The indices that `wanted` names. UserError for a pattern that matches nothing, listing what could.

    A pattern is the end of a name ("q_proj", "attention/q_proj"), a regular expression for the whole of it
    ("layers/[0-3]/.*"), or "all-linear": every weight product of the layers. `where` is the config's key, for errors.
    """
    allowed = None if layers is None else set(layers)
    chosen: Chosen = {}
    unmatched = dict.fromkeys(wanted)
    for path, array in arrays.items():
        indices = []
        for index, name in enumerate(array.names()):
            hits = [pattern for pattern in wanted if matches(pattern, name, where)]
            for pattern in hits:
                unmatched.pop(pattern, None)
            skipped = any(matches(pattern, name, where) for pattern in exclude)
            outside = allowed is not None and bool(array.layers) and array.layers[index] not in allowed
            if hits and not skipped and not outside:
                indices.append(index)
        if indices:
            chosen[path] = tuple(indices) if array.layers else ()
    if unmatched or not chosen:
        kinds = sorted({re.sub(r"layers/\d+/", "layers/N/", name) for a in arrays.values() for name in a.names()})
        what = next(iter(unmatched), None)
        raise UserError(
            (f"{where} {what!r} matches nothing" if what is not None else f"{where}={tuple(wanted)} chooses nothing")
            + f"; this network has {', '.join(kinds)}."
        )
    return chosen


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether a pattern (see `choose`) means this name. UserError when it is not a regular expression."""
    if pattern == ALL_LINEAR:
        return name.startswith(("layers/", "embed_in_proj", "embed_out_proj"))
    if name == pattern or name.endswith("/" + pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(
            f"{where} {pattern!r} is not a regular expression ({error}): escape its special characters."
        ) from error


def last_match(patterns: Sequence[tuple[str, Any]], name: str, default: Any, where: str) -> Any:
    """The value of the last pattern that means this name, else the default."""
    found = [value for pattern, value in patterns if matches(pattern, name, where)]
    return found[-1] if found else default
