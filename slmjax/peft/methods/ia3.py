"""IA3 (Liu et al. 2022, arXiv:2205.05638): a learned factor on each key, value and feed-forward dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.peft.config import IA3Config
from slmjax.peft.targets import choose, matches, nested, weights_of


def init(config: IA3Config, model: ModelConfig, base: Any) -> dict[str, Any]:
    """Factors of 1, float32 [repeats, in or out]. `base` may be shapes."""
    weights = weights_of(model, base)
    trained = {}
    for path, places in choose(weights, config.targets, where="peft.ia3.targets").items():
        weight = weights[path]
        if not path.startswith("segment_") or len(places) < len(weight.layers):
            raise UserError(f"peft.ia3.targets names {path} or a part of it: give weight products of all layers.")
        scales_input = any(matches(p, weight.names()[0], "peft.ia3.feedforward") for p in config.feedforward)
        size = weight.shape[0] if scales_input else weight.shape[1]
        trained[f"{path}/ia3_{'input' if scales_input else 'output'}"] = jnp.ones((len(places), size))
    return nested(trained)


def changed_weights(base: Mapping[str, Any], path: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel (and bias) that a dense network would have, by leaf name, float32. `base` is flat."""
    kernel = base[f"{path}/kernel"].astype(jnp.float32)
    if "ia3_input" in leaves:
        return {"kernel": leaves["ia3_input"][..., :, None] * kernel}
    changed = {"kernel": kernel * leaves["ia3_output"][..., None, :]}
    if f"{path}/bias" in base:
        changed["bias"] = base[f"{path}/bias"].astype(jnp.float32) * leaves["ia3_output"]
    return changed
