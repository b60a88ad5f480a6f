"""Stopping and going on is not stopping, bit for bit; a step is compiled once; how a batch is cut changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.recipes import language_model
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.train import train
from slmjax.training import loop
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.interrupts import StopRequest

V, T, B = 300, 32, 8


def make_config(text, steps=6, **training):
    config = default_config(
        ModelConfig(
            vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64, context_length=64
        )
    )
    config.data.sources.text = {"path": str(text)}
    config.data.tokenizer = f"train:{V}"
    config.data.sequence_length = T
    config.data.validation_fraction = 0.2
    config.data.cache_dir = str(text.parent / "cache")
    config.training.batch_size = B
    config.training.eval_every = 2
    config.checkpoint.every = 2
    config.schedule.warmup_steps = 1
    config.mesh.fsdp = 4
    config.mesh.tensor = 2
    for key, value in training.items():
        config.training[key] = value
    set_budget(config, steps=steps)
    return run_config(config)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "walk", "under", "the", "old", "a", "of", "and"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(words, 12)) + "." for _ in range(300)))
    return path


def final_state(config, workdir):
    restored = Checkpointer(workdir / loop.CHECKPOINTS).restore_latest(language_model.build(config).state)
    return restored.step, jax.device_get(restored.state)


def assert_bitwise_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    config = make_config(text)
    traces = []
    make = program.make_train_step

    def counting(*args, **kwargs):
        step = make(*args, **kwargs)

        def counted(state, batch):
            traces.append(1)
            return step(state, batch)

        return counted

    program.make_train_step = counting
    try:
        result = train(config, workdir)
    finally:
        program.make_train_step = make
    assert result.step == 6 and len(traces) == 1, "the step was traced more than once"
    return final_state(config, workdir)


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_stopping_anywhere_and_going_on_is_not_stopping(text, tmp_path, monkeypatch, uninterrupted, stop_at):
    config = make_config(text)

    def wanted(self, step):
        if step == stop_at:
            self.signal = 15
        return self.signal is not None

    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "wanted", wanted)
        stopped = train(config, tmp_path / "run")
    assert stopped.step == stop_at and stopped.stopped_by == 15
    assert train(config, tmp_path / "run").step == 6
    step, state = final_state(config, tmp_path / "run")
    assert step == uninterrupted[0]
    assert_bitwise_equal(state, uninterrupted[1])


def random_batch(p):
    rng = np.random.default_rng(1)
    batch = {name: rng.integers(0, V, (B, T)).astype(np.int32) for name in ("inputs", "targets")}
    batch["positions"] = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    batch["segments"] = np.ones((B, T), np.int32)
    batch["loss_weights"] = (rng.random((B, T)) * np.linspace(0, 1, B)[:, None]).astype(np.float32)
    return program.to_devices(batch, p)


def one_step(config, spoil=False):
    p = language_model.build(config)
    state = p.initialize()
    if spoil:
        table = state.params["embedder"]["embedding"]
        embedder = {"embedding": table.at[0].set(jnp.nan)}
        state = dataclasses.replace(state, params={**state.params, "embedder": embedder})
    before = jax.device_get(state)
    state, metrics = p.compile()(state, random_batch(p))
    return before, jax.device_get(state), jax.device_get(metrics)


def with_plain_mesh(config, accumulation):
    mesh = dataclasses.replace(config.mesh, fsdp=2, tensor=4)
    return dataclasses.replace(
        config, mesh=mesh, training=dataclasses.replace(config.training, accumulation=accumulation)
    )


def test_accumulated_micro_batches_are_one_large_batch(text):
    """Weights differ from row to row, so averaging the micro-batches' means would be wrong."""
    one, four = (one_step(with_plain_mesh(make_config(text), n)) for n in (1, 4))
    assert one[2]["loss"] == pytest.approx(four[2]["loss"], rel=1e-6)
    assert one[2]["gradient_norm"] == pytest.approx(four[2]["gradient_norm"], rel=1e-5)
    moments = [s[1].opt_state for s in (one, four)]
    for a, b in zip(jax.tree.leaves(moments[0]), jax.tree.leaves(moments[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_step_that_is_not_finite_changes_only_the_counters(text):
    before, after, metrics = one_step(make_config(text), spoil=True)
    assert not np.isfinite(metrics["loss"])
    assert (after.step, after.skipped, after.skipped_in_a_row) == (1, 1, 1)
    assert_bitwise_equal(before.params, after.params)
    assert_bitwise_equal(before.opt_state, after.opt_state)


def test_too_many_skipped_steps_stop_the_run_and_name_the_last_good_checkpoint(text, tmp_path, monkeypatch):
    config = make_config(text, max_skipped=2)
    make = program.make_train_step

    def poisoned(*args, **kwargs):
        step = make(*args, **kwargs)

        def spoiled(state, batch):
            weights = jnp.where(state.step >= 2, jnp.nan, batch["loss_weights"])
            return step(state, {**batch, "loss_weights": weights})

        return spoiled

    monkeypatch.setattr(program, "make_train_step", poisoned)
    with pytest.raises(UserError, match=r"2 steps in a row.*last good checkpoint is step 2"):
        train(config, tmp_path / "run")


def test_a_branch_starts_from_the_other_runs_state(text, tmp_path, uninterrupted):
    first = make_config(text)
    train(first, tmp_path / "a")
    branch = make_config(text, steps=7, branch_from=str(tmp_path / "a"))
    result = train(branch, tmp_path / "b")
    assert result.step == 7
    assert final_state(first, tmp_path / "a")[0] == 6  # the run that was branched from is as it was


def test_a_finished_run_says_where_it_ended_and_changes_nothing(text, tmp_path):
    config = make_config(text)
    first = train(config, tmp_path / "run")
    before = final_state(config, tmp_path / "run")
    again = train(config, tmp_path / "run")
    assert again.step == 6
    assert again.metrics["validation_loss"] == pytest.approx(first.metrics["validation_loss"], rel=1e-6)
    assert_bitwise_equal(before, final_state(config, tmp_path / "run"))


def test_a_run_that_ends_within_the_profiled_steps_still_leaves_its_trace(text, tmp_path):
    train(make_config(text, steps=2, profile_at=1), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_run_continued_behind_the_profiled_step_traces_nothing(text, tmp_path, monkeypatch):
    config = make_config(text, profile_at=0)

    def wanted(self, step):
        self.signal = 15 if step == 1 else None
        return self.signal is not None

    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "wanted", wanted)
        assert train(config, tmp_path / "run").step == 1
    assert train(config, tmp_path / "run").step == 6
