"""Lookup tables: tokens (and learned positions) to vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.execution import Execution
from slmjax.models.linear import normal_init


class Table(nn.Module):
    """A float32 table `embedding` of [rows, dim]."""

    rows: int
    dim: int
    init_std: float | None

    @nn.compact
    def __call__(self) -> jax.Array:
        std = self.init_std if self.init_std is not None else self.dim**-0.5
        return self.param("embedding", normal_init(std), (self.rows, self.dim), jnp.float32)


def lookup(table_VE: jax.Array, ids_BT: jax.Array, run: Execution) -> jax.Array:
    """Rows of the table in the compute dtype, [B, T, E].

    The table is cast before it is gathered over the mesh (half the bytes in bfloat16), while its gradient is summed in
    float32: frequent tokens add up thousands of rows.
    """
    return _lookup(run.dtype, run.constrain, table_VE.shape, table_VE, ids_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _lookup(dtype: Any, constrain, shape: tuple[int, int], table_VE: jax.Array, ids_BT: jax.Array) -> jax.Array:
    return jnp.take(constrain(table_VE.astype(dtype), "table"), ids_BT, axis=0, mode="clip")


def _forward(dtype, constrain, shape, table_VE, ids_BT):
    return _lookup(dtype, constrain, shape, table_VE, ids_BT), ids_BT


def _backward(dtype, constrain, shape, ids_BT, dy_BTE):
    dtable_VE = jnp.zeros(shape, jnp.float32).at[ids_BT].add(dy_BTE.astype(jnp.float32), mode="drop")
    # First as partial sums over the tokens of each device, then cut: one reduce-scatter.
    return constrain(constrain(dtable_VE, "table"), "table_gradient"), None


_lookup.defvjp(_forward, _backward)
