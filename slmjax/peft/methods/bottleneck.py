"""Bottleneck adapters: a small network down to m dimensions and back up, beside or after a sub-layer.

Houlsby et al. 2019 (arXiv:1902.00751): y + up(act(down(y))) after attention and after the feed-forward; Pfeiffer et al.
2020 (arXiv:2005.00247): after the feed-forward alone; parallel, He et al. 2021 (arXiv:2110.04366): ffn(x) + s
up(act(down(x))).
The up-projection starts at zero, so that a fresh adapter changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params
from slmjax.peft.config import ADAPTER_KINDS, AdapterConfig
from slmjax.peft.options import Options


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """Adapters in every layer of a network; see `peft.method.Added`."""

    config: AdapterConfig
    network: ModelConfig
    changes_at_start: ClassVar[bool] = False
    rate_factors: ClassVar[dict[str, float]] = {}

    @property
    def options(self) -> Options:
        """How they are run."""
        config = self.config
        return Options(activation=config.activation, scale=config.scale, parallel=config.kind == "parallel")

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(fresh adapters, float32: down [repeats, D, m], up [repeats, m, D] and biases of a stack; no constants)."""
        D, m = self.network.embed_dim, self.network.embed_dim // self.config.reduction_factor
        tree: dict[str, Any] = {}
        for s, segment in enumerate(self.network.segments):
            for b in range(len(segment.period)):
                block = tree.setdefault(f"segment_{s}", {}).setdefault(f"block_{b}", {})
                for sublayer in ADAPTER_KINDS[self.config.kind][0]:
                    key, subkey = jax.random.split(key)
                    down = jax.random.uniform(subkey, (segment.repeats, D, m), minval=-1.0, maxval=1.0) * D**-0.5
                    block[sublayer] = {
                        "adapter_down": down,
                        "adapter_down_bias": jnp.zeros((segment.repeats, m)),
                        "adapter_up": jnp.zeros((segment.repeats, m, D)),
                        "adapter_up_bias": jnp.zeros((segment.repeats, D)),
                    }
        return tree, {}

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """What the network sees."""
        return trained


def plan(config: AdapterConfig, network: ModelConfig) -> Bottleneck:
    """The adapters of a network. UserError where they would have no width."""
    if network.embed_dim // config.reduction_factor < 1:
        raise UserError(
            f"peft.adapter.reduction_factor={config.reduction_factor} leaves nothing of "
            f"model.embed_dim={network.embed_dim}: it must be at most that."
        )
    return Bottleneck(config, network)
