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
from slmjax.models.parameters import flatten
from slmjax.peft.config import PeftConfig
from slmjax.recipes.corpus import Corpus
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.observers.losses import evaluate
from slmjax.sharding.mesh import MeshConfig
from slmjax.training.config import RunConfig
from slmjax.training.program import build, local_rows


def interpolate(base: Any, tuned: Any, weight: float) -> Any:
    """(1 - weight) base + weight tuned, float32, leaf by leaf; exactly the base at 0 and the tuned at 1."""
    ours, theirs = ({path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (base, tuned))
    if ours != theirs:
        raise UserError("Only networks of the same shape can be interpolated: these two differ in their parameters.")
    return _interpolate(base, tuned, jnp.float32(weight))


@jax.jit
def _interpolate(base: Any, tuned: Any, weight: jax.Array) -> Any:
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
    program = build(plain, token_bytes=corpus.tokenizer.token_bytes(), devices=[first])
    rows = local_rows(program.batch_sharding, training.batch_size)
    state = program.state
    results = []
    for weight in points:
        params = jax.device_put(interpolate(base, tuned, weight), SingleDeviceSharding(first))
        state = dataclasses.replace(state, params={"params": params}, frozen={}, ema=None)
        losses = evaluate(program, state, corpus, rows, general)
        losses = {name: loss for name, loss in losses.items() if name.endswith("_loss")}
        say(f"weight {weight:g}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        results.append({"weight": float(weight), **losses})
    return results
