"""What was added, worked into the weights and out of them again, in float32."""

from __future__ import annotations

from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.peft.methods import ia3, lora
from slmjax.peft.targets import flatten, nested

Leaves = dict[str, jax.Array]


def merge(params: Any, added: Any) -> Any:
    """The parameters of the plain network that computes the same; what is changed is float32, the rest as it was.

    params: the base, not quantized. added: a collection of LoRA, DoRA or IA3, as `Method.parts` gives it. UserError for
    methods that no weights can express.
    """
    base = flatten(params)
    for path, leaves in _modules(added).items():
        if "lora_a" in leaves:
            base[_matrix(base, path)] = lora.changed_weight(lora.weight_of(base, path), leaves)
        else:
            changed = ia3.changed_weights(base, path, leaves)
            base |= {f"{path}/{name}": leaf for name, leaf in changed.items()}
    return nested(base)


def unmerge(params: Any, added: Any) -> Any:
    """The base again, to float32 rounding (a sum and a difference round twice: not bitwise). Not for DoRA.

    DoRA's merged columns have the length of its magnitudes: that of the base's is lost. Keep the base for that.
    """
    base = flatten(params)
    for path, leaves in _modules(added).items():
        if "dora_magnitude" in leaves:
            raise UserError("A merged DoRA cannot be unmerged, the base's norms are gone: load the base again.")
        if "lora_a" in leaves:
            back = leaves | {"lora_scale": -leaves["lora_scale"]}
            base[_matrix(base, path)] = lora.changed_weight(lora.weight_of(base, path), back)
        else:
            changed = ia3.changed_weights(base, path, {name: 1.0 / leaf for name, leaf in leaves.items()})
            base |= {f"{path}/{name}": leaf for name, leaf in changed.items()}
    return nested(base)


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
