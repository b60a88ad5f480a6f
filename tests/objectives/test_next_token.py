"""The pretraining objective: sums over the batch that the step may divide, tied and untied heads."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token
from tests.tiny import largest, noise, param_shapes, sum_and_loss

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CONFIG = ModelConfig(vocab_size=31, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=24, logit_softcap=4.0)


def make_batch(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 3, (rows, 12)), axis=1)[:, ::-1]
    return {
        "inputs": rng.integers(0, 31, (rows, 12)).astype(np.int32),
        "targets": rng.integers(0, 31, (rows, 12)).astype(np.int32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (rows, 1)),
        "segments": segments.astype(np.int32),
        "loss_weights": (rng.random((rows, 12)) * (segments > 0)).astype(np.float32),
    }


def make_params(config: ModelConfig):
    return noise(param_shapes(config), 0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_the_whole_logits(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, head_bias=not tied)
    model, params, batch = Transformer(config), make_params(config), make_batch(3)

    def whole(params, targets):
        logits = model.apply({"params": params}, batch["inputs"], batch["positions"], batch["segments"])
        log_probs = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(nll * batch["loss_weights"]), logits

    program = quick_jit(jax.value_and_grad(whole, has_aux=True))
    guesses = np.argmax(program(params, batch["targets"])[0][1], -1).astype(np.int32)
    batch["targets"] = np.asarray(batch["targets"]).copy()
    batch["targets"][0] = guesses[0]  # so that some are right
    (expected, _), expected_gradients = program(params, batch["targets"])
    objective = next_token(model, logits_bytes=1)
    step = quick_jit(jax.value_and_grad(sum_and_loss(objective), has_aux=True))
    (value, loss), gradients = step({"params": params}, {}, batch, None)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["loss"].sum, expected, rtol=1e-5)
    np.testing.assert_allclose(loss.weight, batch["loss_weights"].sum(), rtol=1e-6)
    right = np.sum((guesses == batch["targets"]) * np.asarray(batch["loss_weights"]))
    assert right > 0
    np.testing.assert_allclose(loss.metrics["accuracy"].sum, right, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * (largest(b) + 1e-3)),
        gradients["params"],
        expected_gradients,
    )


def test_sums_add_up_over_parts_of_a_batch():
    objective = quick_jit(next_token(Transformer(CONFIG), z_loss=1e-3))
    params, batch = make_params(CONFIG), make_batch(4)
    whole = objective({"params": params}, {}, batch, None)
    parts = [objective({"params": params}, {}, {k: v[i : i + 2] for k, v in batch.items()}, None) for i in (0, 2)]
    jax.tree.map(lambda w, a, b: np.testing.assert_allclose(w, a + b, rtol=1e-5), whole, *parts)
    assert whole.sum > whole.metrics["loss"].sum  # z-loss is part of the loss and not of the measurement


def test_padding_has_no_part_in_the_loss():
    """What stands in padding moves neither the loss nor the weight."""
    objective = quick_jit(next_token(Transformer(CONFIG)))
    params, batch = make_params(CONFIG), make_batch(4)
    padding = batch["segments"] == 0
    assert padding.any()
    other = {
        **batch,
        "inputs": np.where(padding, np.int32(7), batch["inputs"]),
        "targets": np.where(padding, np.int32(9), batch["targets"]),
    }
    results = (objective({"params": params}, {}, given, None) for given in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_bfloat16_compute_gives_float32_sums():
    objective = quick_jit(next_token(Transformer(CONFIG, Execution(dtype=jnp.bfloat16))))
    sums = objective({"params": make_params(CONFIG)}, {}, make_batch(2), None)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
