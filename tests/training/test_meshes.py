"""The step on every mesh, and on micro-batches, is the step on one device."""

import jax
import numpy as np
import pytest

from slmjax.recipes import language_model
from slmjax.training import program
from slmjax.training.program import TRAIN

MESHES = {
    "data 8": {"mesh.data": 8, "mesh.fsdp": 1},
    "fsdp 8": {},
    "fsdp 2, tensor 2, sequence 2": {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2},
    "data 2, fsdp 2, tensor 2, accumulated": {"mesh.data": 2, "mesh.tensor": 2, "training.accumulation": 2},
}


def take_steps(config, count=2, devices=None):
    """Metrics of some steps and the last state, on batches whose rows weigh unequally and hold segments."""
    p = language_model.build(config, devices=devices).program
    fields = p.kinds[TRAIN].batch
    V, (B, T) = config.model.vocab_size, fields["inputs"].shape
    rng = np.random.default_rng(1)
    step, state, metrics = p.compile()[TRAIN], p.initialize(), []
    for _ in range(count):
        batch = {name: rng.integers(0, V, (B, T)).astype(np.int32) for name in ("inputs", "targets")}
        batch["segments"] = np.sort(rng.integers(1, 3, (B, T)), axis=1).astype(np.int32)
        batch["positions"] = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        batch["loss_weights"] = (rng.random((B, T)) * np.linspace(0, 1, B)[:, None]).astype(np.float32)
        state, values = step(state, program.to_devices(batch, fields))
        metrics.append(jax.device_get(values))
    return metrics, jax.device_get(state)


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_large_batch(tiny_config):
    """Weights differ from row to row, so averaging the micro-batches' means would be wrong."""
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 4}
    one, four = (take_steps(tiny_config(**mesh, **{"training.accumulation": n}), 1) for n in (1, 4))
    assert one[0][0]["loss"] == pytest.approx(four[0][0]["loss"], rel=1e-6)
    assert one[0][0]["gradient_norm"] == pytest.approx(four[0][0]["gradient_norm"], rel=1e-5)
    for a, b in zip(jax.tree.leaves(one[1].opt_state), jax.tree.leaves(four[1].opt_state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.fixture(scope="module")
def on_one_device(tiny_config):
    return take_steps(tiny_config(), devices=jax.devices()[:1])


@pytest.mark.parametrize("mesh", [pytest.param("data 8", marks=pytest.mark.slow), *list(MESHES)[1:]])
def test_every_mesh_takes_the_same_steps(tiny_config, on_one_device, mesh):
    metrics, state = take_steps(tiny_config(**MESHES[mesh]))
    for one, many in zip(on_one_device[0], metrics, strict=True):
        for name, value in one.items():
            assert many[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    # AdamW divides by the gradient's size: where that is nearly 0, rounding decides; the rate is 3e-3.
    for a, b in zip(jax.tree.leaves(on_one_device[1].params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
