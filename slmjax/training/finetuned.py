"""A finished fine-tune put back on its base: what inference, merging and export start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.models.transformer import Transformer
from slmjax.peft.base import fingerprint
from slmjax.peft.merging import merge
from slmjax.peft.method import Encode, Method, make_method
from slmjax.quantization.weights import dequantized
from slmjax.training.checkpoints import Checkpointer
from slmjax.training.config import RunConfig


@dataclass(frozen=True)
class FineTuned:
    """`variables` goes to `peft.interception.applied` with `method.options`."""

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
