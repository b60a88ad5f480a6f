"""A finished fine-tune put back on its base: what inference, merging and export start from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.inference.description import Description
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.fingerprint import fingerprint
from slmjax.peft.merging import merge
from slmjax.peft.method import Encode, Method, make_method
from slmjax.peft.methods.expansion import expand, larger_config, unexpand
from slmjax.quantization.weights import dequantized
from slmjax.training.checkpoints.checkpointer import Checkpointer


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


def expand_config(model: ModelConfig, peft: PeftConfig) -> tuple[ModelConfig, PeftConfig]:
    """The network with its `peft.expand` new layers, and the config that names them; as they are with them already."""
    if not peft.expand or peft.new_layers:
        return model, peft
    larger, added = larger_config(model, peft.expand)
    return larger, dataclasses.replace(peft, new_layers=added)


def expand_base(model: ModelConfig, peft: PeftConfig, base: Any) -> Any:
    """The base's parameters with new layers that start as the identity. model: after `expand_config`."""
    return expand(unexpand(model, peft.expand), base, peft.expand)[1] if peft.expand else base


def count_trained(model: ModelConfig, peft: PeftConfig, encode: Encode | None = None) -> tuple[int, int]:
    """(trained numbers, trained and frozen ones) of a fine-tune, from shapes alone; encode: as in `make_method`."""
    model, peft = expand_config(model, peft)
    network = Transformer(model)
    key, tokens = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    shapes = jax.eval_shape(network.init, key, tokens)["params"]
    trees = jax.eval_shape(make_method(peft, network, encode).split, shapes, key)
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    return trained, trained + frozen


def load_finetuned(
    run: Description, checkpoints: Path, base: Any, *, step: int | None = None, encode: Encode | None = None
) -> FineTuned:
    """A run's newest readable checkpoint (or that of `step`) on its base, averaged where the run kept an average.

    base: the parameters at `run.peft.base`; encode: as in `make_method`. UserError when the base is not that with which
    the run began.
    """
    if run.peft.fingerprint and fingerprint(base) != run.peft.fingerprint:
        raise UserError(
            f"{run.peft.base} holds other parameters than the fine-tune in {checkpoints.parent} was made on: "
            "give the base that it began with."
        )
    model, peft = expand_config(run.model, run.peft)
    base = expand_base(model, peft, base)
    method = make_method(peft, Transformer(model), encode)
    key = jax.random.key(0)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(method.split, base, key),
    )
    reader = Checkpointer(checkpoints)
    trained = reader.restore_params(shapes[0], step=step, name="ema" if run.averaged else "params")
    frozen = {}
    if "params" in shapes[1]:
        frozen["params"] = jax.jit(lambda base: method.split(base, key)[1]["params"])(base)
    if "peft" in shapes[1]:
        frozen |= reader.restore_params({"peft": shapes[1]["peft"]}, step=step, name="frozen")
    return FineTuned(method, trained, frozen)
