"""IA3 (Liu et al. 2022, arXiv:2205.05638): a learned factor on each key, value and feed-forward dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, unflatten
from slmjax.peft.config import IA3Config
from slmjax.peft.options import PLAIN, Options
from slmjax.peft.targets import choose, matches, matrices_of


@dataclass(frozen=True, eq=False)
class IA3:
    """Factors on a network's weight products; see `peft.method.Added`."""

    shapes: Mapping[str, tuple[int, int]]  # by path, "segment_0/block_0/attention/k_proj/ia3_output"
    options: ClassVar[Options] = PLAIN
    changes_at_start: ClassVar[bool] = False
    rate_factors: ClassVar[dict[str, float]] = {}

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """Factors of 1, float32 [repeats, in or out]; no constants."""
        return unflatten({path: jnp.ones(shape) for path, shape in self.shapes.items()}), {}

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """What the network sees."""
        return trained


def plan(config: IA3Config, network: ModelConfig, base: Params) -> IA3:
    """The factors of a network. `base` may be shapes. UserError for targets that are not products of all layers."""
    weights = matrices_of(network, base)
    shapes: dict[str, tuple[int, int]] = {}
    for path, indices in choose(weights, config.targets, where="peft.ia3.targets").items():
        weight = weights[path]
        if not path.startswith("segment_") or len(indices) < len(weight.layers):
            raise UserError(f"peft.ia3.targets names {path} or a part of it: give weight products of all layers.")
        scales_input = any(matches(p, weight.names()[0], "peft.ia3.feedforward") for p in config.feedforward)
        size = weight.shape[0] if scales_input else weight.shape[1]
        shapes[f"{path}/ia3_{'input' if scales_input else 'output'}"] = (len(indices), size)
    return IA3(shapes)


def change_weights(base: Mapping[str, Any], path: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel (and bias) that a dense network would have, by leaf name, float32. `base` is flat."""
    kernel = base[f"{path}/kernel"].astype(jnp.float32)
    if "ia3_input" in leaves:
        return {"kernel": leaves["ia3_input"][..., :, None] * kernel}
    changed = {"kernel": kernel * leaves["ia3_output"][..., None, :]}
    if f"{path}/bias" in base:
        changed["bias"] = base[f"{path}/bias"].astype(jnp.float32) * leaves["ia3_output"]
    return changed
