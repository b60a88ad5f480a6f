"""`Execution`: the ways to run a network (dtype, attention kernel, remat, layout), on which no weight depends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.attention.contract import AttentionFn
from slmjax.models.attention.xla import xla_attention

# (activation, x [B, T, D], up, down, gate) -> y [B, T, D]. Each of the three is a pair (kernel, bias), None where
# absent; the activation maps the products of the input, (up) or (gate, up), to what the down projection multiplies.
FeedForwardFn = Callable[[Callable[..., jax.Array], jax.Array, Any, Any, Any], jax.Array]

_policies = jax.checkpoint_policies

# What the backward pass finds in memory for each layer, from most memory to least.
# The names are set with `checkpoint_name` in attention.py and feedforward.py.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # everything that autodiff wants
    "dots": _policies.dots_with_no_batch_dims_saveable,  # outputs of all weight products
    "projections": _policies.save_only_these_names("query", "key", "value", "context", "ffn_gate", "ffn_up"),
    "attention": _policies.save_only_these_names("query", "key", "value", "context"),
    "context": _policies.save_only_these_names("context"),  # attention is not run again, all else is
    "full": _policies.nothing_saveable,  # the layer's input alone
}


LAYOUTS = ("stacked", "unstacked", "fused")


def sum_rows(num_rows: int, ids_BT: jax.Array, dy_BTE: jax.Array) -> jax.Array:
    """The gradient of a table [num_rows, E], float32: dy summed over the tokens that looked up each row."""
    zeros = jnp.zeros((num_rows, dy_BTE.shape[-1]), jnp.float32)
    return zeros.at[ids_BT].add(dy_BTE.astype(jnp.float32), mode="drop")


def _identity(x: jax.Array, name: str) -> jax.Array:
    del name
    return x


@dataclass(frozen=True)
class Execution:
    """Choices that change speed and memory but not the function (beyond rounding)."""

    dtype: Any = jnp.float32  # of activations and of the weights as they are used; parameters keep their own
    attention: AttentionFn = xla_attention
    feedforward: FeedForwardFn | None = None  # None: plain products
    remat: str = "none"
    scan_unroll: int = 1  # layers unrolled in each iteration of the scan; 0: all of them, which is a plain loop
    flatten_tokens: bool = False  # weight products on [B*T, D]: the CPU's weight gradient is ~1.6x faster so
    # Of parameters and caches: "stacked" by segment, as they are trained and saved; "unstacked" (`unstacked.py`), how a
    # CPU decodes fast; "fused", with q, k, v in one product and gate, up in another too: how it decodes one row.
    layout: str = "stacked"
    constrain: Callable[[jax.Array, str], jax.Array] = _identity  # activation sharding by name
    embedding_gradient: Callable[[int, jax.Array, jax.Array], jax.Array] = sum_rows

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"training.remat={self.remat!r} is not known: choose one of {', '.join(REMAT_POLICIES)}.")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}, not one of {', '.join(LAYOUTS)}.")
        if not self.is_stacked and (self.feedforward is not None or self.flatten_tokens or self.remat != "none"):
            raise ValueError(f"layout {self.layout!r} is for decoding: feedforward, flatten_tokens and remat train.")

    @property
    def is_stacked(self) -> bool:
        """Whether the arrays of a segment's layers are stacked along a first axis."""
        return self.layout == "stacked"
