"""WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): weights between a base and what was fine-tuned from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from slmjax.data.packing import Row
from slmjax.errors import UserError
from slmjax.peft.config import PeftConfig
from slmjax.peft.targets import flatten
from slmjax.recipes.config import RunConfig
from slmjax.recipes.corpus import Corpus
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.language_model import build
from slmjax.recipes.observers.losses import batches_of, mean_losses
from slmjax.sharding.mesh import MeshConfig


def mixed(base: Any, tuned: Any, weight: float) -> Any:
    """(1 - weight) base + weight tuned, float32, leaf by leaf; exactly the base at 0 and the tuned at 1."""
    ours, theirs = ({path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (base, tuned))
    if ours != theirs:
        raise UserError("Only networks of the same shape can be mixed: these two differ in their parameters.")
    return _mixed(base, tuned, jnp.float32(weight))


@jax.jit
def _mixed(base: Any, tuned: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda b, t: (1 - weight) * b.astype(jnp.float32) + weight * t.astype(jnp.float32), base, tuned)


def curve(
    config: RunConfig,
    base: Any,
    tuned: Any,
    points: Sequence[float],
    *,
    corpus: Corpus,
    general: list[Row],
    say: Callable[[str], None] = lambda message: None,
) -> list[dict[str, float]]:
    """`weight`, `validation_loss` and `general_loss` (nats a token) of the mix at each point, on the first device.

    config: of the fine-tune, whose data, batch and precision are used; a soft prompt or an adapter has no weights to
    mix. base, tuned: parameters of the plain network.
    """
    training = dataclasses.replace(config.training, ema_decay=0.0, accumulation=1, neftune_alpha=0.0)
    plain = dataclasses.replace(
        config, training=training, peft=PeftConfig(), forgetting=ForgettingConfig(), mesh=MeshConfig(fsdp=1)
    )
    first = jax.local_devices()[0]
    lm = build(plain, token_bytes=corpus.tokenizer.token_bytes(), devices=[first])
    T, B, state = plain.data.sequence_length, training.batch_size, lm.program.state
    results = []
    for weight in points:
        params = jax.device_put(mixed(base, tuned, weight), SingleDeviceSharding(first))
        state = dataclasses.replace(state, params=params, frozen={}, ema=None)
        losses = {}
        if corpus.validation:
            batches = corpus.validation_batches(plain, lm.rows)
            losses["validation_loss"] = mean_losses(lm, lm.eval_step, state, batches)["loss"]
        if general:
            batches = batches_of(general, T, B, lm.rows)
            losses["general_loss"] = mean_losses(lm, lm.eval_step, state, batches)["loss"]
        say(f"weight {weight:g}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        results.append({"weight": float(weight), **losses})
    return results
