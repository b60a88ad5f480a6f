"""The schema of the parameters: paths, the layers that a stacked array holds, shapes.

Parameters are nested dicts of arrays; "a/b/c" is the path of `params["a"]["b"]["c"]`. Layer i of the network is one of
the `repeats` of a block of a segment (`ModelConfig.segments`): its arrays are at index `repeat` of the first axis of
those under "segment_<s>/block_<b>". What belongs to no layer (tables, head, final norm) stands outside the segments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from slmjax.models.config import ModelConfig

Params = dict[str, Any]  # nested dicts of arrays, or of their shapes
PyTree = Any  # what jax.tree maps over

_BLOCK = re.compile(r"(?:^|/)(segment_(\d+)/block_(\d+))(?:/|$)")
_SEGMENT = re.compile(r"(?:^|/)segment_\d+(?:/|$)")
_MATRICES = ("kernel", "embedding")
_PROJECTIONS = ("embed_in_proj", "embed_out_proj")  # weight products that belong to no layer


@dataclass(frozen=True)
class Place:
    """The place of a layer's arrays: under `path`, at index `repeat` of the first axis."""

    segment: int
    block: int
    repeat: int

    @property
    def path(self) -> str:
        """The block's path, "segment_0/block_0"."""
        return block_path(self.segment, self.block)


def block_path(segment: int, block: int) -> str:
    """The path of a segment's block, "segment_0/block_0"."""
    return f"segment_{segment}/block_{block}"


def place_of(config: ModelConfig, layer: int) -> Place:
    """The place of layer number `layer`. IndexError where the network has no such layer."""
    first = 0
    for s, segment in enumerate(config.segments):
        size = len(segment.period)
        if first <= layer < first + size * segment.repeats:
            repeat, block = divmod(layer - first, size)
            return Place(s, block, repeat)
        first += size * segment.repeats
    raise IndexError(layer)


@lru_cache(maxsize=32)
def layers_by_block(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Path of each block -> the layers in the order in which its arrays stack them; the inverse of `place_of`."""
    blocks: dict[str, tuple[int, ...]] = {}
    first = 0
    for s, segment in enumerate(config.segments):
        size = len(segment.period)
        for b in range(size):
            blocks[block_path(s, b)] = tuple(first + b + size * repeat for repeat in range(segment.repeats))
        first += size * segment.repeats
    return MappingProxyType(blocks)


def layers_of(config: ModelConfig, path: str) -> tuple[int, ...]:
    """The layers that the array at `path` stacks along its first axis; () where it belongs to no layer."""
    found = _BLOCK.search(path)
    return layers_by_block(config)[found[1]] if found else ()


def within_block(path: str) -> str:
    """The part of a path after the block: "attention/q_proj/kernel"; the path itself where there is no block."""
    found = _BLOCK.search(path)
    return path[found.end() :] if found else path


def is_stacked(path: str) -> bool:
    """Whether the array at `path` has a first axis of layers. The path may begin above the parameters ("mu/params")."""
    return _SEGMENT.search(path) is not None


def is_matrix(path: str) -> bool:
    """Whether the leaf at `path` is a matrix (a stack of them): the weights of a product, or a table.

    The number of axes does not tell: stacked norm scales [L, D] have two.
    """
    return path.rpartition("/")[2] in _MATRICES


def is_weight_product(path: str) -> bool:
    """Whether the leaf at `path` is the kernel of a weight product: of a layer, or around a narrower token table.

    Tables and the head are matrices, but not weight products: quantization and adapters by row leave them alone.
    """
    *modules, leaf = path.split("/")
    return leaf == "kernel" and (is_stacked(path) or bool(modules and modules[-1] in _PROJECTIONS))


def path_string(path: tuple[Any, ...]) -> str:
    """A jax key path as "a/b/c": dict keys, attribute names and indices."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}, in the order of jax.tree.leaves."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{"a/b": x} -> {"a": {"b": x}}; the inverse of `flatten` for nested dicts without empty ones."""
    tree: Params = {}
    for path, value in flat.items():
        *rooms, last = path.split("/")
        node = tree
        for room in rooms:
            node = node.setdefault(room, {})
        node[last] = value
    return tree


def resized(params: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters in other shapes: cut, or filled up with zeros; what is not there is zeros, of a head the table.

    For networks with other tokens, and with biases or a head that this one lacks.
    """
    made: dict[str, Any] = {}
    for path, wanted in shapes.items():
        array = params.get(path)
        if array is None and path == "lm_head/kernel":
            array = params["embedder/embedding"].T
        if array is None or array.shape != wanted.shape:
            new = np.zeros(wanted.shape, np.float32 if array is None else array.dtype)
            if array is not None:
                kept = tuple(slice(min(sizes)) for sizes in zip(array.shape, wanted.shape, strict=True))
                new[kept] = np.asarray(array)[kept]
            array = new
        made[path] = array
    return made


@lru_cache(maxsize=8)  # a file's reading asks several times, and each answer traces the network
def abstract_leaves(config: ModelConfig) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of every array of a config's parameters, layers stacked. Nothing is allocated."""
    from slmjax.models.transformer import Transformer  # the network itself is built on this file

    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    return MappingProxyType(flatten(jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]))


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes (jax.ShapeDtypeStruct) of a config's parameters as nested dicts. Nothing is allocated."""
    return unflatten(abstract_leaves(config))
