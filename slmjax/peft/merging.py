"""Merging what was added into the weights, in float32."""

from __future__ import annotations

from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.models.parameters import Params, flatten, unflatten
from slmjax.peft.methods import ia3, lora

Leaves = dict[str, jax.Array]


def merge(params: Params, added: Params) -> Params:
    """The parameters of the plain network that computes the same; what is changed is float32, the rest as it was.

    params: the base, not quantized. added: a collection of LoRA, DoRA or IA3, as `Method.parts` gives it. UserError for
    methods that no weights can express.
    """
    base = flatten(params)
    for path, leaves in _modules(added).items():
        if "lora_a" in leaves:
            base[_matrix(base, path)] = lora.change_weight(lora.matrix_of(base, path), leaves)
        else:
            changed = ia3.change_weights(base, path, leaves)
            base |= {f"{path}/{name}": leaf for name, leaf in changed.items()}
    return unflatten(base)


def _modules(added: Any) -> dict[str, Leaves]:
    """The collection's arrays by the path of their module."""
    modules: dict[str, Leaves] = {}
    for path, leaf in flatten(added).items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = leaf
    for path, leaves in modules.items():
        name = next(iter(leaves))
        if not name.startswith(("lora_", "dora_", "ia3_")):
            raise UserError(f"{path}/{name} cannot be merged: only LoRA, DoRA and IA3 can be worked into the weights.")
    return modules


def _matrix(base: dict[str, Any], path: str) -> str:
    if f"{path}/kernel" in base or f"{path}/embedding" in base:
        return f"{path}/kernel" if f"{path}/kernel" in base else f"{path}/embedding"
    raise UserError(f"{path} is quantized or not of this network: merge into the base as it was before.")
