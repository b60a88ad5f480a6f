"""Lookup tables: tokens (and learned positions) to vectors."""

from __future__ import annotations

from functools import partial

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
    return _lookup(run, table_VE.shape[0], table_VE, ids_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lookup(run: Execution, num_rows: int, table_VE: jax.Array, ids_BT: jax.Array) -> jax.Array:
    return jnp.take(run.constrain(table_VE.astype(run.dtype), "table"), ids_BT, axis=0, mode="clip")


def _forward(run, num_rows, table_VE, ids_BT):
    return _lookup(run, num_rows, table_VE, ids_BT), ids_BT


def _backward(run, num_rows, ids_BT, dy_BTE):
    return run.embedding_gradient(num_rows, ids_BT, dy_BTE), None


_lookup.defvjp(_forward, _backward)
