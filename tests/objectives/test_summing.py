"""Losses of many batches are those of one batch that holds all of their rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.objectives.loss import Loss, Mean
from slmjax.objectives.summing import bits_per_byte, sum_losses


@jax.jit
def step(batch):
    values, weights = batch["values"], batch["weights"]
    total = jnp.sum(values * weights)
    metrics = {"loss": Mean(total), "bits": bits_per_byte(total, jnp.sum(batch["bytes"]))}
    return Loss(total, jnp.sum(weights), metrics)


def test_the_sum_does_not_depend_on_how_rows_are_cut_into_batches():
    rng = np.random.default_rng(0)
    rows = {name: rng.random((12, 4)).astype(np.float32) for name in ("values", "weights", "bytes")}
    whole = sum_losses(step, [rows])
    for size in (1, 3, 4):
        parts = [{name: array[i : i + size] for name, array in rows.items()} for i in range(0, 12, size)]
        found = sum_losses(step, iter(parts))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            assert isinstance(a, float) and a == pytest.approx(b, rel=1e-5)
    assert whole.metrics["loss"].over(whole.weight) == pytest.approx(whole.sum / whole.weight)
    assert sum_losses(step, []) == Loss(0.0, 0.0, {})


def test_bits_per_byte_of_a_uniform_guess_over_bytes_are_eight():
    assert bits_per_byte(100 * math.log(256), 100.0).over(None) == pytest.approx(8.0)
