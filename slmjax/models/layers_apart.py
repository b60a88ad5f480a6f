"""How a CPU decodes fast: every layer's parameters and caches as arrays of their own, kernels as [out, in].

Where XLA's CPU backend unrolls a scan, it copies each layer's kernels out of their stack before it multiplies with
them: every token would move all weights three times. The stacked form is the one that is trained, saved and sharded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig

MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def take_apart(config: ModelConfig, params: dict, dtype: Any, *, merged: bool = False) -> dict:
    """A copy of the parameters for `Execution(layers_apart=True)`: `segment_s` is a tuple, one subtree a repeat.

    Any collection that is stacked along the parameters' paths may be taken apart so. Kernels become [out, in], of
    `dtype` as the network would cast them at each use; so does the token table. Gains and biases stay as they are: some
    families use them in float32.
    merged: for `Execution(merged=True)`; the merged kernels are [in, out], which one row runs at the speed of memory.
    """
    apart: dict = {}
    for name, tree in params.items():
        if name.startswith("segment_"):
            repeats = config.segments[int(name.removeprefix("segment_"))].repeats
            apart[name] = tuple(_layer(tree, i, dtype, merged) for i in range(repeats))
        else:
            apart[name] = _layer(tree, None, dtype, merged)
    return apart


def _layer(tree: dict, repeat: int | None, dtype: Any, merged: bool) -> dict:
    layer, rest = {}, dict(tree)
    for name, parts in MERGED.items() if merged else ():
        if parts[0] in rest:
            trees = [rest.pop(part) for part in parts]
            layer[name] = {
                leaf: _leaf([part[leaf] for part in trees], repeat, dtype if leaf == "kernel" else array.dtype, False)
                for leaf, array in trees[0].items()
            }
    for name, leaf in rest.items():
        if isinstance(leaf, dict):
            layer[name] = _layer(leaf, repeat, dtype, merged)
        else:
            cast = dtype if name in ("kernel", "embedding") else leaf.dtype
            layer[name] = _leaf([leaf], repeat, cast, name == "kernel")
    return layer


@partial(jax.jit, static_argnames=("dtype", "transpose"))
def _leaf(parts: list[jax.Array], repeat: int | None, dtype: Any, transpose: bool) -> jax.Array:
    """One layer's array: `parts` side by side along the outputs."""
    if repeat is not None:
        parts = [jax.lax.dynamic_index_in_dim(part, repeat, keepdims=False) for part in parts]
    array = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    return (array.T if transpose else array).astype(dtype)


def run_apart(
    period: Any, collections: dict[str, tuple | None], x_BTD: jax.Array, caches: tuple | None, *constants: Any
) -> tuple[Any, Any]:
    """`period` (a module without parent) with each layer's variables in turn; returns x and the new caches.

    collections: by name, a subtree for each layer, or None where there is no such collection.
    """

    @jax.jit  # traced once for all layers; XLA inlines the calls
    def run(variables, x_BTD, cache):
        return period.apply(variables, (x_BTD, cache), None, *constants)[0]

    held = {name: layers for name, layers in collections.items() if layers is not None}
    new_caches = []
    for i in range(len(held["params"])):
        variables = {name: layers[i] for name, layers in held.items()}
        x_BTD, cache = run(variables, x_BTD, None if caches is None else caches[i])
        new_caches.append(cache)
    return x_BTD, (None if caches is None else tuple(new_caches))


def cast_weights(params: Any, dtype: Any) -> Any:
    """The matrices as the network would cast them at each use, cast once: the same results, less memory traffic.

    Norm gains and biases stay as they are: some families use them in float32.
    """

    def cast(path, leaf):
        name = path[-1].key
        return leaf.astype(dtype) if name in ("kernel", "embedding") and leaf.dtype != dtype else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
