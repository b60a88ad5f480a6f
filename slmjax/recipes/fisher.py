"""The diagonal Fisher information of what is trained, estimated on general text before the first step."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.data.packing import Row, empty_row, stack_rows
from slmjax.objectives.chunks import logits_bytes_for
from slmjax.objectives.next_token import next_token
from slmjax.peft.anchors import Anchors
from slmjax.recipes.language_model import ModelProgram
from slmjax.training.program import process_rows
from slmjax.training.state import TrainState


def with_fisher(lm: ModelProgram, state: TrainState, rows: list[Row]) -> TrainState:
    """The state with its Fisher information estimated on these rows, each [T], at the parameters as they are.

    It is the empirical one: of each row the gradient of the log-likelihood of its own tokens, summed over the row,
    squared; the squares are added up and divided by the number of tokens. Half of it times a squared step is then about
    what that step costs in nats per token. The same on any mesh: the rows are visited one by one.
    """
    sharding, program = lm.batch_sharding, lm.program
    together = program.mesh.shape["data"] * program.mesh.shape["fsdp"]  # the smallest batch that the mesh can hold
    mine = process_rows(sharding, together)
    logits_bytes = logits_bytes_for(program.mesh.devices.flat[0].platform, lm.config.model)
    objective = next_token(lm.model, lm.method, mesh=program.mesh, logits_bytes=logits_bytes)
    anchors = Anchors.of(state.frozen)
    fisher = anchors.fisher
    shardings = jax.tree.map(lambda leaf: leaf.sharding, Anchors.of(program.state.frozen).fisher)

    @partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def add(total: Any, params: Any, frozen: Any, batch: Any) -> Any:
        def visit(total: Any, row: jax.Array) -> tuple[Any, None]:
            only = batch["loss_weights"] * (jnp.arange(together) == row)[:, None]
            gradient = jax.grad(lambda p: objective(p, frozen, batch | {"loss_weights": only}, None).sum)(params)
            return jax.tree.map(lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradient), None

        return jax.lax.scan(visit, total, jnp.arange(together))[0]

    others = dataclasses.replace(anchors, fisher=None).put_into(state.frozen)
    T = lm.config.data.sequence_length
    for first in range(0, len(rows), together):
        group = [rows[i] if i < len(rows) else empty_row(T) for i in range(first, first + together)]
        batch = {
            name: jax.make_array_from_process_local_data(sharding, array, (together, T))
            for name, array in stack_rows(group[i] for i in mine).items()
        }
        fisher = add(fisher, state.params, others, batch)
    tokens = max(float(sum(np.sum(row["loss_weights"]) for row in rows)), 1.0)
    scale = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf / tokens, tree), out_shardings=shardings)
    return dataclasses.replace(state, frozen=dataclasses.replace(anchors, fisher=scale(fisher)).put_into(others))
