"""Convert the arrays of our collection to tensors of a module of transformers, where several of ours may be fused.

Low-rank terms of q, k and v become one of the fused product exactly: their A's one below the other, their B's on the
blocks of a block-diagonal matrix, of rank the sum of theirs. Terms that share A, as those that were read from a fused
one do, keep its rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.adapters.names import Names, Weight

Leaves = dict[str, np.ndarray]
Found = list[Leaves | None]  # of each of our modules that a weight holds; None: nothing is added


@dataclass(frozen=True)
class LoraFactors:
    """a [r, in], b [out, r], magnitude [out] of DoRA."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None


def modules_of(names: Names, added: Mapping[str, Any]) -> dict[str, Found]:
    """Added arrays by module of transformers: one layer's, for each module of ours that it holds."""
    ours: dict[str, Leaves] = {}
    for path, leaf in added.items():
        ours_path, _, name = path.rpartition("/")
        ours.setdefault(ours_path, {})[name] = np.asarray(leaf, np.float32)
    held = {module.path for weight in names.weights.values() for module in weight.modules}
    if unknown := sorted(set(ours) - held):
        raise UserError(f"{unknown[0]} has no place among the weights of {names.family.model_type}.")
    found: dict[str, Found] = {}
    for weight in names.weights.values():
        parts: Found = []
        for module in weight.modules:
            leaves = ours.get(module.path)
            if leaves is not None and module.repeat is not None:
                leaves = {name: leaf[module.repeat] for name, leaf in leaves.items()}
            # A layer of a stack that is not adapted has scale 0.
            parts.append(None if leaves is not None and not leaves.get("lora_scale", np.ones(())) else leaves)
        if any(leaves is not None for leaves in parts):
            found[weight.name] = parts
    return found


def lora_factors(weight: Weight, parts: Found, base: Mapping[str, Any]) -> LoraFactors:
    """One module's factors. base: flat parameters, for the norms of what DoRA leaves alone in a fused product."""
    terms = [None if leaves is None else _trimmed(leaves) for leaves in parts]
    given = [leaves for leaves in terms if leaves is not None]
    scale, first = float(given[0]["lora_scale"]), given[0]["lora_a"]
    shared = all(np.array_equal(leaves["lora_a"], first) for leaves in given)
    rank = first.shape[1] if shared else sum(leaves["lora_a"].shape[1] for leaves in given)
    blocks, start = [], 0
    for leaves, size in zip(terms, weight.outputs, strict=True):
        block = np.zeros((rank, size), np.float32)
        if leaves is not None:
            r = leaves["lora_a"].shape[1]
            block[start : start + r] = leaves["lora_b"] * (float(leaves["lora_scale"]) / scale)
            start += 0 if shared else r
        blocks.append(block)
    a = first if shared else np.concatenate([leaves["lora_a"] for leaves in given], axis=1)
    magnitude = None
    if any("dora_magnitude" in leaves for leaves in given):
        magnitude = weight.join([m[None] for m in _magnitudes(weight, terms, base)])[:, 0]
    return LoraFactors(a.T, weight.join(blocks), scale, magnitude)


def _magnitudes(weight: Weight, terms: Sequence[Leaves | None], base: Mapping[str, Any]) -> list[np.ndarray]:
    """DoRA's of each part; a part that nothing is added to has the norms that it has."""
    magnitudes = []
    for module, leaves in zip(weight.modules, terms, strict=True):
        if leaves is not None and "dora_magnitude" not in leaves:
            raise UserError(f"{weight.name} is adapted with DoRA in part, which peft's format cannot say.")
        if leaves is not None:
            magnitudes.append(leaves["dora_magnitude"])
            continue
        kernel = np.asarray(base[f"{module.path}/kernel"], np.float32)
        kernel = kernel if module.repeat is None else kernel[module.repeat]
        magnitudes.append(np.sqrt(np.square(kernel).sum(axis=0)))
    return magnitudes


def _trimmed(leaves: Leaves) -> Leaves:
    """Without the zeros at the end of A and B that fill up a smaller rank."""
    used = np.any(leaves["lora_a"] != 0, axis=0) | np.any(leaves["lora_b"] != 0, axis=1)
    rank = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 1
    return leaves | {"lora_a": leaves["lora_a"][:, :rank], "lora_b": leaves["lora_b"][:rank]}


def ia3_factors(weight: Weight, parts: Found) -> np.ndarray:
    """One module's factors: [out, 1] of its outputs or [1, in] of its inputs."""
    given = [leaves for leaves in parts if leaves is not None]
    inputs = [leaves["ia3_input"] for leaves in given if "ia3_input" in leaves]
    if not inputs:
        ones = [np.ones(size, np.float32) for size in weight.outputs]
        vectors = [one if leaves is None else leaves["ia3_output"] for one, leaves in zip(ones, parts, strict=True)]
        return weight.join([vector[None] for vector in vectors])
    if len(inputs) < len(parts) or not all(np.array_equal(one, inputs[0]) for one in inputs):
        raise UserError(f"{weight.name} is one product in transformers: IA3 cannot scale its inputs for a part of it.")
    return inputs[0][None]
