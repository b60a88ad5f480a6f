"""Weights of ours in each module of transformers, found in the tables that read and write whole models.

An adapter's file names modules ("model.layers.0.self_attn.qkv_proj"); a family's entries name their tensors and cut
them into our arrays. What cuts a weight [out, in] into those of ours cuts anything [out, m], so a fused product's
LoRA B, DoRA magnitudes and IA3 factors are split and joined by the entry, GPT-NeoX's interleaved heads included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.weight_map import Entry, Leaf
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import abstract_leaves


@dataclass(frozen=True)
class Weight:
    """A module of transformers that multiplies or looks up, and the modules of ours that it holds."""

    name: str  # "model.layers.0.self_attn.qkv_proj"
    entry: Entry
    modules: tuple[Leaf, ...]  # ours: "segment_0/block_0/attention/q_proj" and the index of the layer
    inputs: int  # of a table: its rows
    outputs: tuple[int, ...]  # of each of ours
    is_table: bool
    is_rows: bool  # the tensor is [out, in], torch's Linear; False: [in, out], GPT-2's Conv1D and tables

    @property
    def features(self) -> tuple[int, int]:
        """Inputs and outputs as transformers counts them; of a table, its rows and its width."""
        return self.inputs, sum(self.outputs)

    def split(self, x: np.ndarray) -> list[np.ndarray]:
        """[out, m] -> for each of ours [m, out of it]."""
        return self.entry.split(x if self.is_rows else x.T)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `split`."""
        x = self.entry.join(list(parts))
        return x if self.is_rows else x.T


@dataclass(frozen=True)
class Names:
    """A network as a family of transformers names it."""

    family: HuggingFaceFamily
    config: ModelConfig
    entries: dict[str, Entry]  # by the tensor's name
    weights: dict[str, Weight]  # by the module's name
    leaves: Mapping[str, jax.ShapeDtypeStruct]  # our arrays by path, layers stacked

    def module(self, name: str) -> str:
        """The family's own spelling of a module's name."""
        return self.family.own_name(f"{name}.weight").removesuffix(".weight")

    def missing(self, modules: Iterable[str]) -> list[str]:
        """The given modules that hold no tensor of the network, in order."""
        held = {name.rpartition(".")[0] for name in self.entries}
        return [module for module in modules if self.module(module) not in held]

    def kinds(self) -> str:
        """All modules that could be named, layers as N: "model.layers.N.self_attn.q_proj, ..."."""
        return ", ".join(without_layers(self.weights))

    @property
    def table(self) -> str:
        """The module of the token table."""
        return next(w.name for w in self.weights.values() if w.modules[0].path == "embedder")

    @property
    def head(self) -> str | None:
        """The module of the output head, whether or not it is the table's transpose here."""
        untied = replace(self.config, tie_embeddings=False)
        found = [e.name for e in self.family.entries(untied) if e.leaves[0].path == "lm_head/kernel"]
        return found[0].removesuffix(".weight") if found else None

    def key_order(self) -> np.ndarray:
        """The place in transformers' keys of each dimension of ours, int [K].

        They are 0, 1, 2 ..., but 0, 2, ..., 1, 3, ... of what a family rotates as neighbours.
        """
        weight, part = next(
            (weight, part)
            for weight in self.weights.values()
            for part, module in enumerate(weight.modules)
            if module.path.endswith("/k_proj")
        )
        rows = weight.split(np.arange(weight.features[1])[:, None])[part][0, : self.config.head_dim]
        return np.asarray(rows - rows.min())


def names_of(config: ModelConfig, family: HuggingFaceFamily) -> Names:
    """The names that a family gives the arrays of a network that it can say."""
    leaves = abstract_leaves(config)
    entries = {entry.name: entry for entry in family.entries(config)}
    weights = {}
    for entry in entries.values():
        kinds = {leaf.path.rpartition("/")[2] for leaf in entry.leaves}
        if entry.name.endswith(".weight") and kinds <= {"kernel", "embedding"}:
            weight = _weight(entry, leaves)
            weights[weight.name] = weight
    return Names(family, config, entries, weights, leaves)


def _weight(entry: Entry, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Weight:
    shapes = [leaves[leaf.path].shape[leaf.repeat is not None :] for leaf in entry.leaves]
    outputs = tuple(shape[-1] for shape in shapes)
    is_table = entry.leaves[0].path.endswith("/embedding")
    # Of one input each, the parts tell which axis of the tensor the outputs are.
    one_input = entry.join([np.broadcast_to(np.float32(0), (1, size)) for size in outputs])
    modules = tuple(Leaf(leaf.path.rpartition("/")[0], leaf.repeat) for leaf in entry.leaves)
    name = entry.name.removesuffix(".weight")
    return Weight(name, entry, modules, shapes[0][0], outputs, is_table, one_input.shape[0] != 1)


def without_layers(modules: Iterable[str]) -> list[str]:
    """Modules with N in place of the number of their layer, each kind once: "model.layers.N.self_attn.q_proj"."""
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", module) for module in modules))


def layer_of(module: str) -> int | None:
    """The number of the layer in a module's name."""
    found = re.search(r"\.(\d+)\.", module)
    return None if found is None else int(found[1])


def within_layer(module: str) -> str:
    """A module's name without what stands before and for its layer: "self_attn.q_proj"."""
    return re.sub(r"^.*?\.\d+\.", "", module, count=1)
