"""Whether two configs compute the same function."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from slmjax.models.config import ModelConfig

# Do not change the function that the network computes: how it was initialized, and where it rounds.
_UNSTORED = {"init_std", "init_scale_residual", "norm_scale_float32"}


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """Names of the fields in which two configs compute different functions, float32's precision aside."""
    left, right = _meaning(a), _meaning(b)
    return [name for name in left if not _close(left[name], right[name])]


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """A config's fields with defaults filled in, layer by layer where layers may differ."""
    c = config
    meaning = {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name not in _UNSTORED}
    layers = c.layers
    for name in ("num_heads", "num_kv_heads", "ffn_dim", "window"):
        meaning[name] = tuple(getattr(spec, name) for spec in layers)
    tables = [None if s is None else dataclasses.astuple(s) for _, s in c.ropes]
    turned = [spec.rope for spec in layers]
    meaning["rope_theta"] = tuple(None if r is None else c.ropes[r][0] for r in turned)
    meaning["rope_scaling"] = tuple(None if r is None else tables[r] for r in turned)
    meaning["attention_scale"] = c.attention_scale or c.head_dim**-0.5
    meaning["rope_fraction"] = c.rotary_dim if c.position == "rope" else 0
    for name in ("layer_pattern", "rope_pattern", "rope_theta_local"):  # said by the layers already
        del meaning[name]
    meaning["position_offset"] = c.position_offset if c.position == "learned" else 0
    return meaning


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, float | int) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b
