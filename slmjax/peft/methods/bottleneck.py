"""Bottleneck adapters: a small network down to m dimensions and back up, beside or after a sub-layer.

Houlsby et al. 2019 (arXiv:1902.00751): y + up(act(down(y))) after attention and after the feed-forward; Pfeiffer et al.
2020 (arXiv:2005.00247): after the feed-forward alone; parallel, He et al. 2021 (arXiv:2110.04366): ffn(x) + s
up(act(down(x))).
The up-projection starts at zero, so that a fresh adapter changes nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.peft.config import ADAPTER_KINDS, AdapterConfig


def init(config: AdapterConfig, model: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """A fresh adapter in every layer, float32, stacked as the layers are: down [repeats, D, m], up [repeats, m, D]."""
    D, m = model.embed_dim, model.embed_dim // config.reduction
    if m < 1:
        raise UserError(
            f"peft.adapter.reduction={config.reduction} leaves nothing of model.embed_dim={D}: it must be at most that."
        )
    tree: dict[str, Any] = {}
    for s, segment in enumerate(model.segments):
        for b in range(len(segment.period)):
            block = tree.setdefault(f"segment_{s}", {}).setdefault(f"block_{b}", {})
            for sublayer in ADAPTER_KINDS[config.kind][0]:
                key, subkey = jax.random.split(key)
                down = jax.random.uniform(subkey, (segment.repeats, D, m), minval=-1.0, maxval=1.0) * D**-0.5
                block[sublayer] = {
                    "adapter_down": down,
                    "adapter_down_bias": jnp.zeros((segment.repeats, m)),
                    "adapter_up": jnp.zeros((segment.repeats, m, D)),
                    "adapter_up_bias": jnp.zeros((segment.repeats, D)),
                }
    return tree
