"""The objective of pretraining and fine-tuning: predict the next token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slmjax.models.transformer import Transformer, head_weights
from slmjax.objectives.chunks import LOGITS_BYTES
from slmjax.objectives.cross_entropy import linear_cross_entropy
from slmjax.objectives.loss import Batch, Loss, Mean, Objective
from slmjax.objectives.summing import bits_per_byte
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import Method

METRIC_NAMES = ("loss", "bits_per_byte", "accuracy")


def next_token(
    model: Transformer,
    method: Method | None = None,
    *,
    token_bytes: np.ndarray | None = None,
    z_loss: float = 0.0,
    mesh: Mesh | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> Objective:
    """The objective of a model: summed weighted cross-entropy of `targets` (plus z-loss), in nats.

    Its metrics are `loss` (nats per token, without z-loss), `accuracy` and `bits_per_byte`, weighted by `loss_weights`.

    Args:
        model: the network.
        method: how `params` and `frozen` make up the network's variables; None: `params` is {"params": all
            of them}.
        token_bytes: int32 [V], UTF-8 bytes of each token; None counts one byte a token.
        z_loss: coefficient of the squared log-normalizer.
        mesh: the devices; None: one.
        logits_bytes: bound on the float32 logits that a device holds at once.
    """
    method = method or Method()

    def objective(params, frozen, batch, rng):
        side = hidden_and_head(model, method, method.variables(params, frozen), batch, rng)
        return cross_entropy_loss(model, side, batch, token_bytes, z_loss=z_loss, mesh=mesh, logits_bytes=logits_bytes)

    return objective


def cross_entropy_loss(
    model: Transformer,
    side: tuple[jax.Array, jax.Array, jax.Array | None],
    batch: Batch,
    token_bytes: np.ndarray | None,
    *,
    z_loss: float,
    mesh: Mesh | None,
    logits_bytes: int,
) -> Loss:
    """The cross-entropy of `batch["targets"]` from `hidden_and_head`, weighted by `loss_weights`, and its metrics."""
    weights_BT = batch["loss_weights"].astype(jnp.float32)
    sums = linear_cross_entropy(
        *side, batch["targets"], weights_BT, config=model.config, z_loss=z_loss, mesh=mesh, logits_bytes=logits_bytes
    )
    sizes = np.ones(model.config.vocab_size, np.int32)
    if token_bytes is not None:
        sizes[: len(token_bytes)] = token_bytes[: len(sizes)]
    bytes_BT = jnp.where(batch["loss_weights"] > 0, jnp.take(sizes, batch["targets"]), 0)
    num_bytes = jnp.sum(bytes_BT.astype(jnp.float32))
    metrics = {
        "loss": Mean(sums.nll),
        "accuracy": Mean(sums.correct),
        "bits_per_byte": bits_per_byte(sums.nll, num_bytes),
    }
    return Loss(sums.loss, jnp.sum(weights_BT), metrics)


def hidden_and_head(
    model: Transformer, method: Method, variables: dict, batch: Batch, rng: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The factors of the logits: hidden states [B, T, E], the head's kernel [E, V] and its bias [V] or None."""
    inputs = (batch["inputs"], batch["positions"], batch["segments"])
    hidden_BTE = forward(Network(model, method.options), variables, *inputs, hidden=True, rng=rng)
    return hidden_BTE, *head_weights(model.config, variables["params"])
