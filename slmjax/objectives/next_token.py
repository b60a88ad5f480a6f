"""The pretraining objective: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slmjax.models.transformer import Transformer, head_weights
from slmjax.objectives.chunks import LOGITS_BYTES
from slmjax.objectives.cross_entropy import linear_cross_entropy
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import Method

Batch = dict[str, jax.Array]
# (params, frozen, batch, rng) -> (loss_sum, (weight_sum, metric sums)). The step divides by the global weight_sum.
# `params` are trained, `frozen` are not; rng is None where nothing shall be random (evaluation).
Objective = Callable[[Any, Any, Batch, jax.Array | None], tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]]


def next_token(
    model: Transformer,
    method: Method | None = None,
    *,
    z_loss: float = 0.0,
    mesh: Mesh | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> Objective:
    """The objective of a model: summed weighted cross-entropy of `targets` (plus z-loss), in nats.

    `metric sums` are nll (nats) and correct, each summed with the loss weights. `logits_bytes` bounds the float32
    logits that a device holds at once. `method` says how `params` and `frozen` make up the network's variables; None:
    `params` is {"params": all of them}.
    """
    method = method or Method()

    def objective(params, frozen, batch, rng):
        variables = method.variables(params, frozen)
        side = hidden_and_head(model, method, variables, batch, rng)
        weights_BT = batch["loss_weights"].astype(jnp.float32)
        head: Any = {"config": model.config, "mesh": mesh, "logits_bytes": logits_bytes}
        sums = linear_cross_entropy(*side, batch["targets"], weights_BT, z_loss=z_loss, **head)
        return sums.loss, (jnp.sum(weights_BT), {"nll": sums.nll, "correct": sums.correct})

    return objective


def hidden_and_head(
    model: Transformer, method: Method, variables: Any, batch: Batch, rng: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What a loss multiplies to logits: hidden states [B, T, E], the head's kernel [E, V] and its bias [V] or None."""
    inputs = (batch["inputs"], batch["positions"], batch["segments"])
    hidden_BTE = forward(Network(model, method.options), variables, *inputs, hidden=True, rng=rng)
    return hidden_BTE, *head_weights(model.config, variables["params"])
