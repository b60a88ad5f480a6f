"""Several LoRA adapters beside one base: every row of a batch has its own, chosen when the batch is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.peft.targets import flatten, nested


def stack_adapters(adapters: Sequence[Any]) -> Any:
    """Collections of LoRA (or all of DoRA) on one axis of adapters, smaller ranks filled up with zeros.

    An adapter may lack modules that others have; {} is the base itself.
    """
    flats = [flatten(adapter) for adapter in adapters]
    modules = sorted({path.rpartition("/")[0] for flat in flats for path in flat})
    stacked: dict[str, jax.Array] = {}
    for module in modules:
        if not module.startswith(("segment_", "embed_in_proj", "embed_out_proj")):
            raise UserError(f"{module} is part of the base's own table or head: rows of a batch cannot differ in it.")
        names = {path.rpartition("/")[2] for flat in flats for path in flat if path.rpartition("/")[0] == module}
        if not names <= {"lora_a", "lora_b", "lora_scale", "dora_magnitude"}:
            raise UserError(f"{module} has {', '.join(sorted(names))}: only LoRA adapters can be served row by row.")
        having = [flat for flat in flats if f"{module}/lora_a" in flat]
        if "dora_magnitude" in names and not all(f"{module}/dora_magnitude" in flat for flat in having):
            raise UserError("Adapters with and without DoRA cannot be served together: merge one kind into its base.")
        for name in sorted(names):
            leaves = [flat.get(f"{module}/{name}") for flat in flats]
            shapes = [leaf.shape for leaf in leaves if leaf is not None]
            shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
            stacked[f"{module}/{name}"] = jnp.stack([_filled(leaf, shape) for leaf in leaves], axis=_axis(module))
    return nested(stacked)


def for_rows(stacked: Any, adapter_B: jax.Array) -> Any:
    """The collection in which row b of the batch has adapter `adapter_B[b]` (int32 [B]) of `stack_adapters`."""
    taken = {path: jnp.take(leaf, adapter_B, axis=_axis(path)) for path, leaf in flatten(stacked).items()}
    return nested(taken)


def num_rows(collection: Any) -> int | None:
    """For how many rows a collection of `for_rows` is; None for one that is the same for all."""
    for path, leaf in flatten(collection).items():
        if path.endswith("/lora_a") and leaf.ndim == 3 + _axis(path):
            return leaf.shape[_axis(path)]
    return None


def _axis(path: str) -> int:
    return 1 if path.startswith("segment_") else 0  # behind the layers of a stack


def _filled(leaf: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    if leaf is None:
        return jnp.zeros(shape)
    return jnp.pad(leaf, [(0, size - have) for size, have in zip(shape, leaf.shape, strict=True)])
