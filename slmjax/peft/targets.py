"""Which weights of a network are meant: by name, by regular expression, by layer, or "all-linear"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.peft.config import ALL_LINEAR

Chosen = dict[str, tuple[int, ...]]  # path -> places in the stack (ascending); () for what belongs to no layer


@dataclass(frozen=True)
class Array:
    """One array of the parameters: all layers of a stack, or one that belongs to no layer."""

    path: str  # "segment_0/block_0/attention/q_proj/kernel"
    shape: tuple[int, ...]  # of one layer
    layers: tuple[int, ...]  # the network's layer numbers along the stack; () where there is none

    def names(self) -> tuple[str, ...]:
        """What patterns are matched with, one a place: "layers/3/attention/q_proj/kernel"."""
        if not self.layers:
            return (self.path,)
        rest = self.path.split("/", 2)[2]
        return tuple(f"layers/{layer}/{rest}" for layer in self.layers)


def flatten(tree: Any) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}; `nested` is its inverse."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *rooms, last = path.split("/")
        node = tree
        for room in rooms:
            node = node.setdefault(room, {})
        node[last] = value
    return tree


def arrays_of(config: ModelConfig, params: Any) -> dict[str, Array]:
    """Every array of the parameters (or of their shapes) by path."""
    arrays, starts = {}, [0]
    for segment in config.segments:
        starts.append(starts[-1] + len(segment.period) * segment.repeats)
    for path, leaf in flatten(params).items():
        found = re.match(r"segment_(\d+)/block_(\d+)/", path)
        if found is None:
            arrays[path] = Array(path, tuple(leaf.shape), ())
            continue
        s, block = map(int, found.groups())
        size = len(config.segments[s].period)
        layers = tuple(starts[s] + block + size * repeat for repeat in range(config.segments[s].repeats))
        arrays[path] = Array(path, tuple(leaf.shape[1:]), layers)
    return arrays


def weights_of(config: ModelConfig, params: Any) -> dict[str, Array]:
    """The modules that hold a matrix, by the module's path: weight products, lookup tables, the head."""
    matrices = {}
    for path, array in arrays_of(config, params).items():
        module, _, leaf = path.rpartition("/")
        if leaf in ("kernel", "embedding"):
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
    """The places that `wanted` names. UserError for a pattern that matches nothing, listing what could.

    A pattern is the end of a name ("q_proj", "attention/q_proj"), a regular expression for the whole of it
    ("layers/[0-3]/.*"), or "all-linear": every weight product of the layers. `where` is the config's key, for errors.
    """
    allowed = None if layers is None else set(layers)
    chosen: Chosen = {}
    unmatched = dict.fromkeys(wanted)
    for path, array in arrays.items():
        places = []
        for place, name in enumerate(array.names()):
            hits = [pattern for pattern in wanted if matches(pattern, name, where)]
            for pattern in hits:
                unmatched.pop(pattern, None)
            skipped = any(matches(pattern, name, where) for pattern in exclude)
            outside = allowed is not None and bool(array.layers) and array.layers[place] not in allowed
            if hits and not skipped and not outside:
                places.append(place)
        if places:
            chosen[path] = tuple(places) if array.layers else ()
    if unmatched or not chosen:
        kinds = sorted({re.sub(r"layers/\d+/", "layers/N/", name) for a in arrays.values() for name in a.names()})
        what = next(iter(unmatched), None)
        raise UserError(
            (f"{where} {what!r} matches nothing" if what is not None else f"{where}={tuple(wanted)} chooses nothing")
            + f"; this network has {', '.join(kinds)}."
        )
    return chosen


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether a pattern (see `choose`) means this name. UserError when it is no regular expression."""
    if pattern == ALL_LINEAR:
        return name.startswith(("layers/", "embed_in_proj", "embed_out_proj"))
    if name == pattern or name.endswith("/" + pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(f"{where} {pattern!r} is no regular expression ({error}).") from error


def last_match(patterns: Sequence[tuple[str, Any]], name: str, default: Any, where: str) -> Any:
    """The value of the last pattern that means this name, else the default."""
    found = [value for pattern, value in patterns if matches(pattern, name, where)]
    return found[-1] if found else default
