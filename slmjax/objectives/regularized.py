"""Next-token prediction regularized towards the network that it started from: L2-SP, EWC, KL to its predictions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slmjax.models.transformer import Transformer
from slmjax.objectives.chunks import LOGITS_BYTES
from slmjax.objectives.divergence import linear_divergence
from slmjax.objectives.loss import Loss, Mean, Objective
from slmjax.objectives.next_token import cross_entropy_loss, hidden_and_head
from slmjax.objectives.penalties import lora_distance, squared_distance
from slmjax.peft.anchors import Anchors
from slmjax.peft.method import Method, change_tables


def regularized(
    model: Transformer,
    method: Method,
    *,
    l2_sp: float = 0.0,
    ewc: float = 0.0,
    kl: float = 0.0,
    token_bytes: np.ndarray | None = None,
    z_loss: float = 0.0,
    mesh: Mesh | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> Objective:
    """`next_token` of an anchored method (`peft.method.anchor`) with penalties added; W is the sum of the loss weights.

    l2_sp  W * l2_sp / 2 times the squared distance of the base's weights from their start: of those that are trained,
           and of those that LoRA changes by s A B; nothing else that is added counts
    ewc    W * ewc / 2 times the squared distance of all that is trained from its start, what is added too, each number
           weighted by the Fisher information of the `Anchors`
    kl     kl times the sum of KL(base || network) over tokens, weighted by the batch's `kl_weights` if it has them, by
           its `loss_weights` otherwise

    Divided by the global W, as the step does, penalties count once however a batch is cut. The metrics are those of
    `next_token`, each penalty by its name, and `kl` in nats per token of its own weights.
    """

    def objective(params: Any, frozen: Any, batch: Any, rng: jax.Array | None) -> Loss:
        parts, anchors = method.parts(params, frozen), Anchors.of(frozen)
        side = hidden_and_head(model, method, change_tables(parts), batch, rng)
        loss, weight, metrics = cross_entropy_loss(
            model, side, batch, token_bytes, z_loss=z_loss, mesh=mesh, logits_bytes=logits_bytes
        )
        if l2_sp:
            own = params.get("params")
            distance = squared_distance(own, anchors.start) if own else 0.0
            metrics["l2_sp"] = Mean(weight * l2_sp / 2 * (distance + lora_distance(parts.get("peft", {}))))
            loss += metrics["l2_sp"].sum
        if ewc:
            distance = squared_distance(params, anchors.trained(), anchors.fisher)
            metrics["ewc"] = Mean(weight * ewc / 2 * distance)
            loss += metrics["ewc"].sum
        if kl:
            base = {"params": jax.lax.stop_gradient(method.base_params(params, frozen))}
            base_side = hidden_and_head(model, Method(), base, batch, None)
            kl_BT = linear_divergence(base_side, side, config=model.config, mesh=mesh, logits_bytes=logits_bytes)
            kl_weights_BT = batch.get("kl_weights", batch["loss_weights"]).astype(jnp.float32)
            # Where it has no weight (padding) it may be anything.
            kl_sum = jnp.sum(jnp.where(kl_weights_BT > 0, kl_weights_BT * kl_BT, 0.0))
            metrics["kl"] = Mean(kl_sum, jnp.sum(kl_weights_BT))
            loss += kl * kl_sum
        return Loss(loss, weight, metrics)

    return objective
