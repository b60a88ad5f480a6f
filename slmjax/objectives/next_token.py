"""The pretraining objective: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slmjax.models.transformer import Transformer, head_weights
from slmjax.objectives.cross_entropy import LOGITS_BYTES, linear_cross_entropy

Batch = dict[str, jax.Array]
# (params, batch, rng) -> (loss_sum, (weight_sum, metric sums)). The step divides by the global weight_sum.
Objective = Callable[[Any, Batch, jax.Array], tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]]


def next_token(
    model: Transformer, *, z_loss: float = 0.0, mesh: Mesh | None = None, logits_bytes: int = LOGITS_BYTES
) -> Objective:
    """The objective of a model: summed weighted cross-entropy of `targets` (plus z-loss), in nats.

    `metric sums` are nll (nats) and correct, each summed with the loss weights. `logits_bytes` bounds the float32
    logits that a device holds at once.
    """

    def objective(params, batch, rng):
        del rng  # nothing here is random; objectives with dropout or noise use it
        hidden_BTE = model.apply(
            {"params": params}, batch["inputs"], batch["positions"], batch["segments"], hidden=True
        )
        kernel_EV, bias_V = head_weights(model.config, params)
        weights_BT = batch["loss_weights"].astype(jnp.float32)
        sums = linear_cross_entropy(
            model.config, z_loss, mesh, logits_bytes, hidden_BTE, kernel_EV, bias_V, batch["targets"], weights_BT
        )
        return sums.loss, (jnp.sum(weights_BT), {"nll": sums.nll, "correct": sums.correct})

    return objective
