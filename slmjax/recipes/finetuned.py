"""A finished fine-tune put back on its base: what inference, merging and export start from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.transformer import Transformer
from slmjax.peft.fingerprint import fingerprint
from slmjax.peft.merging import merge
from slmjax.peft.method import Encode, Method, make_method
from slmjax.peft.methods.expansion import expand, larger_config, unexpand
from slmjax.quantization.weights import dequantized
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.config import RunConfig


@dataclass(frozen=True)
class FineTuned:
    """`variables` goes to `peft.forward.forward` with `method.options`."""

    method: Method
    trained: Any
    frozen: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The base and what was added, as the network runs."""
        return self.method.variables(self.trained, self.frozen)

    def merged(self) -> Any:
        """Parameters of a plain network that computes the same. UserError for methods that no weights can express."""
        parts = self.method.parts(self.trained, self.frozen)
        params = dequantized(parts["params"])
        return merge(params, parts["peft"]) if "peft" in parts else params


def expanded(config: RunConfig, base: Any) -> tuple[RunConfig, Any]:
    """The run and its base with `peft.expand` new layers, which are trained (besides what `peft.freeze` trains).

    The config may be that of the base's network, as a user writes it, or that of the larger one, as a run keeps it.
    """
    if not config.peft.expand:
        return config, base
    config = expanded_config(config)
    return config, expand(unexpand(config.model, config.peft.expand), base, config.peft.expand)[1]


def expanded_config(config: RunConfig) -> RunConfig:
    """The config of a run with `peft.expand` new layers in its model; as it is where they are there already."""
    if not config.peft.expand or config.peft.new_layers:
        return config
    larger, added = larger_config(config.model, config.peft.expand)
    return dataclasses.replace(config, model=larger, peft=dataclasses.replace(config.peft, new_layers=added))


def count_trained(config: RunConfig, encode: Encode | None = None) -> tuple[int, int]:
    """(trained numbers, trained and frozen ones) of a run, from shapes alone; encode: as in `make_method`."""
    config = expanded_config(config)
    model = Transformer(config.model)
    key, tokens = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    shapes = jax.eval_shape(model.init, key, tokens)["params"]
    trees = jax.eval_shape(make_method(config.peft, model, encode).split, shapes, key)
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    return trained, trained + frozen


def load_finetuned(
    config: RunConfig, checkpoints: Path, base: Any, *, step: int | None = None, encode: Encode | None = None
) -> FineTuned:
    """A run's newest readable checkpoint (or that of `step`) on its base, averaged where the run kept an average.

    base: the parameters at `config.peft.base`; encode: as in `make_method`. UserError when the base is
    not that with which the run began.
    """
    if config.peft.fingerprint and fingerprint(base) != config.peft.fingerprint:
        raise UserError(
            f"{config.peft.base} holds other parameters than the fine-tune in {checkpoints.parent} was made on: "
            "give the base that it began with."
        )
    config, base = expanded(config, base)
    method = make_method(config.peft, Transformer(config.model), encode)
    key = jax.random.key(0)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(method.split, base, key),
    )
    reader = Checkpointer(checkpoints)
    name = "ema" if config.training.ema_decay else "params"
    trained = reader.restore_params(shapes[0], step=step, name=name)
    frozen = {}
    if "params" in shapes[1]:
        frozen["params"] = jax.jit(lambda base: method.split(base, key)[1]["params"])(base)
    if "peft" in shapes[1]:
        frozen |= reader.restore_params({"peft": shapes[1]["peft"]}, step=step, name="frozen")
    return FineTuned(method, trained, frozen)
