"""Runs as a whole: stopped by signals, killed, continued, branched, watched, and laid out over meshes."""

import dataclasses
import json
import logging
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.recipes import language_model
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.observers.losses import Losses
from slmjax.recipes.train import make_recipe, train
from slmjax.training import loop, program
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.interrupts import StopRequest
from slmjax.training.recipe import Evaluation, Watching
from tests.tiny_run import lines_of, stop_at

MESH = {"mesh.fsdp": 4, "mesh.tensor": 2}


@pytest.fixture
def seen(monkeypatch):
    """The inputs of every training batch, in the order in which the loop takes them."""
    batches = []
    original = loop.to_devices

    def recording(batch, fields):
        batches.append(batch["inputs"].copy())
        return original(batch, fields)

    monkeypatch.setattr(loop, "to_devices", recording)
    return batches


def wrap_steps(patch, wrap):
    """Have `wrap(step)` in place of each training step that is made while the patch holds."""
    make = program.make_train_step
    patch.setattr(program, "make_train_step", lambda *args, **kwargs: wrap(make(*args, **kwargs)))


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, tmp_path_factory):
    """A run of 6 steps that nobody stopped, traced once: (config, workdir), with checkpoints 2, 4 and 6."""
    config, workdir = tiny_config(**MESH), tmp_path_factory.mktemp("uninterrupted") / "run"
    traces = []

    def counted(step):
        return lambda state, batch: traces.append(1) or step(state, batch)

    with pytest.MonkeyPatch.context() as patch:
        wrap_steps(patch, counted)
        result = train(config, workdir)
    assert (result.step, result.total_steps, result.stopped_by) == (6, 6, None)
    assert len(traces) == 1, "the step was traced more than once"
    return config, workdir


@pytest.mark.parametrize("step", [3, 4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 5))])
def test_stopping_anywhere_and_going_on_is_not_stopping(
    uninterrupted, tmp_path, monkeypatch, saved, assert_bitwise_equal, step
):
    """At step 4 an evaluation is due: the signal does not wait for it, and who continues makes up for it."""
    config, workdir = uninterrupted
    with monkeypatch.context() as patched:
        stop_at(patched, step)
        stopped = train(config, tmp_path / "run")
    assert (stopped.step, stopped.stopped_by) == (step, signal.SIGTERM)
    measured = [line["step"] for line in lines_of(tmp_path / "run") if line["split"] == "validation"]
    assert measured == [due for due in (2, 4, 6) if due < step]
    assert train(config, tmp_path / "run").step == 6
    straight, parts = saved(config, workdir), saved(config, tmp_path / "run")
    assert straight.step == parts.step == 6 and straight.position == parts.position
    assert_bitwise_equal(straight.state, parts.state)
    assert lines_of(tmp_path / "run") == lines_of(workdir)


def test_a_signal_in_the_last_step_does_not_keep_the_run_from_its_end(uninterrupted, tmp_path, monkeypatch):
    config, workdir = uninterrupted
    stop_at(monkeypatch, 6)
    ended = train(config, tmp_path / "run")
    assert (ended.step, ended.stopped_by) == (6, None)
    assert lines_of(tmp_path / "run") == lines_of(workdir)
    assert ended.metrics["validation_loss"] == lines_of(workdir)[-1]["validation_loss"]


class Fragile(Watching):
    """Counts what it has seen, and fails where it is told to."""

    name = "fragile"

    def __init__(self, fails_at=()):
        self.fails_at, self.seen = fails_at, 0

    def measure(self, evaluation):
        if evaluation.step in self.fails_at:
            raise ZeroDivisionError("it broke.")
        self.seen += 1
        return {"seen": self.seen}

    def position(self):
        return {"seen": self.seen}

    def seek(self, position):
        self.seen = position["seen"]


@pytest.mark.parametrize("step", [4, 6])
def test_an_observer_that_raises_costs_nothing_once_it_is_mended(
    tiny_config, uninterrupted, tmp_path, saved, assert_bitwise_equal, step
):
    config = tiny_config(**MESH)

    def run(workdir, observer):
        recipe = make_recipe(config, workdir)
        return loop.train(dataclasses.replace(recipe, observers=[observer, *recipe.observers]), workdir)

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(straight, Fragile()).metrics["seen"] == 3
    said = rf"The observer 'fragile' failed after step {step}: .*it broke; the run is saved"
    for _ in range(2):  # not mended yet, it fails at the same place, before anything is trained
        with pytest.raises(UserError, match=said) as caught:
            run(broken, Fragile([step]))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert Checkpointer(broken / loop.CHECKPOINTS).latest_step() == step
    assert run(broken, Fragile()).metrics["seen"] == 3
    assert lines_of(broken) == lines_of(straight)
    a, b = saved(config, straight), saved(config, broken)
    assert_bitwise_equal(a.state, b.state)
    if step < 6:
        assert a.position == b.position
    assert_bitwise_equal(a.state, saved(config, uninterrupted[1]).state)  # watching changes nothing


def test_an_evaluation_that_is_made_up_for_twice_is_written_once(uninterrupted, tmp_path, monkeypatch):
    """Killed after it and before the next checkpoint, the run makes up for it again."""
    config, workdir = uninterrupted
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        train(config, tmp_path / "run")
    with monkeypatch.context() as patched:
        # As if killed: nothing is saved any more, and the next step does not end.
        patched.setattr(loop, "_report", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines_of(workdir)


def test_a_config_of_an_earlier_version_is_the_same_run(uninterrupted, tmp_path):
    config, workdir = uninterrupted
    shutil.copytree(workdir, tmp_path / "run")
    stored = json.loads((workdir / "config.json").read_text())
    del stored["version"], stored["training"]["epochs"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert train(config, tmp_path / "run").step == 6
    assert lines_of(tmp_path / "run") == lines_of(workdir)


def test_too_many_skipped_steps_stop_the_run_and_name_the_last_good_checkpoint(tiny_config, tmp_path, monkeypatch):
    def poisoned(step):
        def spoiled(state, batch):
            return step(state, {**batch, "loss_weights": jnp.where(state.step >= 2, jnp.nan, batch["loss_weights"])})

        return spoiled

    wrap_steps(monkeypatch, poisoned)
    with pytest.raises(UserError, match=r"2 steps in a row.*last good checkpoint is step 2"):
        train(tiny_config(**{"training.max_skipped": 2}), tmp_path / "run")


@pytest.mark.slow
def test_a_profile_is_left_behind_by_a_short_run_and_not_made_again(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(steps=2, **{"training.profile_at": 0})
    with monkeypatch.context() as patched:
        stop_at(patched, 1)  # within the profiled steps
        train(config, tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    shutil.rmtree(tmp_path / "run" / "profile")
    assert train(config, tmp_path / "run").step == 2
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_next_batch_to_the_same_bits(
    tiny_config, tmp_path, monkeypatch, seen, saved, assert_bitwise_equal
):
    """With an average of the weights, and no evaluation."""
    config = tiny_config(**{"training.ema_decay": 0.5, "training.eval_every": 0, "data.validation_fraction": 0.0})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=""))
    train(config, tmp_path / "straight")
    straight, seen[:] = list(seen), []
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        stopped = train(config, tmp_path / "stopped")
    assert (stopped.step, stopped.stopped_by) == (3, signal.SIGTERM)
    train(config, tmp_path / "stopped")
    np.testing.assert_array_equal(np.stack(seen), np.stack(straight))
    assert len({batch.tobytes() for batch in seen}) == 6  # else the order would say nothing
    a, b = saved(config, tmp_path / "straight"), saved(config, tmp_path / "stopped")
    assert_bitwise_equal(a.state, b.state)
    assert a.step == b.step == 6 and a.position == b.position


def test_nothing_is_compiled_after_the_first_round_of_step_evaluation_and_checkpoint(
    tiny_config, tmp_path, monkeypatch, caplog
):
    at_step = {}

    def wanted(self, step):
        at_step[step] = len(caplog.records)
        return False

    monkeypatch.setattr(StopRequest, "wanted", wanted)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train(tiny_config(steps=9), tmp_path / "run")
    compiled = [record.getMessage() for record in caplog.records]
    later = [message for message in compiled[at_step[3] :] if message.startswith("Finished XLA compilation")]
    assert not later
    steps = [message for message in compiled if message.startswith("Finished XLA compilation of jit(step)")]
    assert len(steps) == 2  # the training step and the evaluation step


def test_finished_runs_are_not_run_again(uninterrupted, seen, saved, assert_bitwise_equal):
    config, workdir = uninterrupted
    before, state = Checkpointer(workdir / loop.CHECKPOINTS).all_steps(), saved(config, workdir)
    lines = lines_of(workdir)
    again = train(config, workdir)
    assert again.step == 6 and again.metrics["validation_loss"] == lines[-1]["validation_loss"]
    assert Checkpointer(workdir / loop.CHECKPOINTS).all_steps() == before and not seen
    assert lines_of(workdir) == lines
    assert_bitwise_equal(state.state, saved(config, workdir).state)


def test_a_workdir_of_another_config_is_refused_with_the_keys(uninterrupted, tiny_config):
    _, workdir = uninterrupted
    changes = {"optimizer.b2": 0.99, "training.seed": 3}
    with pytest.raises(UserError) as error:
        train(tiny_config(**changes), workdir)
    for part in ("optimizer.b2 (0.95 -> 0.99)", "training.seed (0 -> 3)", str(workdir), "--workdir"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"training\.steps \(6 -> 8\)"):  # a cosine depends on its end
        train(tiny_config(steps=8), workdir)


OTHER_MESH = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2, "training.log_every": 3, "checkpoint.every": 5}


def test_a_checkpoint_comes_back_bit_for_bit_on_another_mesh(uninterrupted, tiny_config, saved, assert_bitwise_equal):
    config, workdir = uninterrupted
    other = tiny_config(**OTHER_MESH)
    assert_bitwise_equal(saved(config, workdir).state, saved(other, workdir).state)
    train(other, workdir)  # these keys do not make it another run


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh_to_the_same_parameters(
    uninterrupted, tiny_config, tmp_path, monkeypatch, saved
):
    config, workdir = uninterrupted
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        train(config, tmp_path / "run")
    assert train(tiny_config(**OTHER_MESH), tmp_path / "run").step == 6
    straight, moved = saved(config, workdir).state, saved(config, tmp_path / "run").state
    for a, b in zip(jax.tree.leaves(straight.params), jax.tree.leaves(moved.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_branch_begins_with_the_state_and_the_data_of_its_step(
    uninterrupted, tiny_config, tmp_path, monkeypatch, seen, saved, assert_bitwise_equal
):
    config, workdir = uninterrupted
    config_b = tiny_config(**MESH, **{"training.branch_from": str(workdir), "training.branch_step": 4})
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    assert train(config_b, tmp_path / "branch").step == 6
    assert len(seen) == 2  # steps 5 and 6
    assert_bitwise_equal(saved(config, workdir).state, saved(config_b, tmp_path / "branch").state)
    assert sorted(path for path in workdir.rglob("*") if path.is_file()) == files
    # What a branch has saved itself counts from then on.
    assert train(config_b, tmp_path / "branch").step == 6 and len(seen) == 2
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        train(tiny_config(**{"training.branch_from": str(workdir), "training.branch_step": 3}), tmp_path / "none")
    with pytest.raises(UserError, match="starts at step 6, but this run ends at step 5"):
        train(tiny_config(steps=5, **{"training.branch_from": str(workdir)}), tmp_path / "late")


@pytest.mark.slow
def test_a_decay_branched_from_the_stable_phase_is_the_uninterrupted_shorter_run(
    tiny_config, tmp_path, monkeypatch, saved, assert_bitwise_equal, capsys
):
    """WSD as it is used: a long run is planned; its stable checkpoint decays now, over a third of a shorter budget."""

    def wsd(steps, **changes):
        schedule = {"schedule.name": "wsd", "schedule.warmup_steps": 2, "schedule.final_fraction": 0.0}
        return tiny_config(steps, **schedule, **{"training.log_every": 1, "training.eval_every": 0}, **changes)

    def rates(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["learning_rate"] for line in lines if line["split"] == "train"}

    shorter = {"schedule.decay_fraction": 0.34}
    train(wsd(9, **shorter), tmp_path / "straight")
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        train(wsd(100), tmp_path / "stable")
    branch = wsd(9, **shorter, **{"training.branch_from": str(tmp_path / "stable")})
    capsys.readouterr()
    assert train(branch, tmp_path / "branch").step == 9
    assert "its learning rate was 0.003, here it is 0.00" in capsys.readouterr().err
    expected, stable, decayed = (rates(tmp_path / name) for name in ("straight", "stable", "branch"))
    assert stable == {step: expected[step] for step in range(1, 7)}
    assert list(stable.values()) == pytest.approx([0.0015] + 5 * [0.003])
    assert decayed == {step: expected[step] for step in range(7, 10)}
    assert expected[6] > expected[7] > expected[8] > expected[9] == 0
    assert_bitwise_equal(saved(branch, tmp_path / "straight").state, saved(branch, tmp_path / "branch").state)


def test_evaluation_is_that_of_the_averaged_weights(tiny_config, tmp_path):
    config = tiny_config(**{"training.ema_decay": 0.9})
    lm = language_model.build(config)
    corpus = open_corpus(config.data, tmp_path)
    state = lm.program.initialize()
    moved = dataclasses.replace(state, params=jax.tree.map(lambda x: 3 * x, state.params))

    def losses(state):
        observer = Losses(lm, lambda: corpus.validation_batches(config, lm.rows))
        return observer.measure(Evaluation(1, state, False, {}, print))

    assert losses(moved) == losses(state)
    assert losses(dataclasses.replace(moved, ema=None)) != losses(state)
