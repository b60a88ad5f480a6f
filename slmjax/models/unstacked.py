"""The arrangement for fast decoding on a CPU: parameters and caches of each layer on their own, kernels as [out, in].

Where XLA's CPU backend unrolls a scan, it copies each layer's kernels out of their stack before it multiplies with
them: every token would move all weights three times. The stacked form is the one that is trained, saved and sharded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, is_matrix

# In the layout "fused" one product takes the place of several: its kernel is theirs side by side, [in, out].
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def unstack(config: ModelConfig, params: Params, dtype: Any, *, layout: str = "unstacked") -> Params:
    """A copy of the parameters for `Execution(layout=layout)`: `segment_s` is a tuple, one subtree a repeat.

    Any collection that is stacked along the parameters' paths may be unstacked so. Kernels become [out, in], of
    `dtype` as the network would cast them at each use; so does the token table. Gains and biases stay as they are: some
    families use them in float32.
    layout: "unstacked" or "fused"; fused kernels are [in, out], which one row runs at the speed of memory.
    """
    if layout not in ("unstacked", "fused"):
        raise ValueError(f"layout is {layout!r}, not 'unstacked' or 'fused'.")
    fused = layout == "fused"
    tree: Params = {}
    for name, subtree in params.items():
        if name.startswith("segment_"):
            repeats = config.segments[int(name.removeprefix("segment_"))].repeats
            tree[name] = tuple(_layer(subtree, i, dtype, fused) for i in range(repeats))
        else:
            tree[name] = _layer(subtree, None, dtype, fused)
    return tree


def _layer(tree: Params, repeat: int | None, dtype: Any, fused: bool) -> Params:
    layer, rest = {}, dict(tree)
    for name, parts in FUSED.items() if fused else ():
        if parts[0] in rest:
            trees = [rest.pop(part) for part in parts]
            layer[name] = {
                leaf: _array([part[leaf] for part in trees], repeat, dtype if is_matrix(leaf) else array.dtype, False)
                for leaf, array in trees[0].items()
            }
    for name, leaf in rest.items():
        if isinstance(leaf, dict):
            layer[name] = _layer(leaf, repeat, dtype, fused)
        else:
            layer[name] = _array([leaf], repeat, dtype if is_matrix(name) else leaf.dtype, name == "kernel")
    return layer


@partial(jax.jit, static_argnames=("dtype", "transpose"))
def _array(parts: list[jax.Array], repeat: int | None, dtype: Any, transpose: bool) -> jax.Array:
    """One layer's array: `parts` side by side along the outputs."""
    if repeat is not None:
        parts = [jax.lax.dynamic_index_in_dim(part, repeat, keepdims=False) for part in parts]
    array = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    return (array.T if transpose else array).astype(dtype)


def apply_unstacked(
    period: Any, collections: dict[str, tuple | None], x_BTD: jax.Array, caches: tuple | None, context: Any
) -> tuple[Any, Any]:
    """`period` (a module without parent) with each layer's variables in turn; returns x and the new caches.

    collections: by name, a subtree for each layer, or None where there is no such collection. context: what all layers
    share (`transformer.Context`).
    """

    @jax.jit  # traced once for all layers; XLA inlines the calls
    def run(variables, x_BTD, cache):
        return period.apply(variables, (x_BTD, cache), None, context)[0]

    held = {name: layers for name, layers in collections.items() if layers is not None}
    new_caches = []
    for i in range(len(held["params"])):
        variables = {name: layers[i] for name, layers in held.items()}
        x_BTD, cache = run(variables, x_BTD, None if caches is None else caches[i])
        new_caches.append(cache)
    return x_BTD, (None if caches is None else tuple(new_caches))
