"""The values that an objective returns: the contract between objectives and the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class Mean:
    """A number to report, sum / (unit * weight); sums and weights are added over micro-batches and devices first."""

    sum: jax.Array  # float32 []
    weight: jax.Array | None = None  # float32 []; None: the weight of the loss itself
    unit: float = flax.struct.field(pytree_node=False, default=1.0)

    def over(self, loss_weight: Any) -> Any:
        """The mean, where the loss has this weight: jax arrays under jit, plain floats on the host."""
        weight = loss_weight if self.weight is None else self.weight
        if isinstance(weight, float):
            return self.sum / (self.unit * max(weight, 1.0))
        if self.weight is None and self.unit == 1.0:
            return self.sum * (1.0 / jnp.maximum(weight, 1.0))
        return self.sum / (self.unit * jnp.maximum(weight, 1.0))


class Loss(NamedTuple):
    """The loss of a batch as a sum and its weight, so that it does not depend on how the batch is cut."""

    sum: jax.Array  # float32 [], what is differentiated; the step divides by the global weight
    weight: jax.Array  # float32 []
    metrics: dict[str, Mean]  # by the name that is reported


# (params, frozen, batch, rng) -> Loss. `params` are trained and differentiated, `frozen` are not; both are trees of the
# recipe's making, of one network or of several. rng is None where nothing shall be random (evaluation).
Objective = Callable[[Any, Any, Batch, jax.Array | None], Loss]
