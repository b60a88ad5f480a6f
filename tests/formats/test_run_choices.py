"""Which checkpoint of a run is loaded, and where its base is found, wherever both have gone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import slmjax
from slmjax.errors import UserError
from slmjax.formats.models import convert, inspect
from slmjax.inference.description import Description
from slmjax.models.transformer import Transformer
from slmjax.peft.config import LoraConfig, PeftConfig
from slmjax.peft.fingerprint import fingerprint
from slmjax.peft.method import make_method
from slmjax.training.checkpoints.checkpointer import Checkpointer

LOSSES = {2: 3.0, 4: 1.0, 6: float("nan"), 8: 2.0, 10: None}  # validation loss by step


def scaled(params, factor):
    return jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), params)


@pytest.fixture(scope="module")
def run(lm, tmp_path_factory):
    """The workdir of a pretraining run, whose parameters at each step are `lm`'s times the step."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    workdir.mkdir()
    checkpointer = Checkpointer(
        workdir / "checkpoints", dataclasses.replace(Checkpointer(workdir)._config, keep_last=9)
    )
    for step, loss in LOSSES.items():
        metrics = {} if loss is None else {"validation_loss": loss, "validation_accuracy": step / 100}
        state = {"params": {"params": scaled(lm.params, step)}}
        checkpointer.save(step, state, position={}, run_config={}, metrics=metrics)
    checkpointer.close()
    Description(kind="run", model=lm.config).write(workdir)
    return workdir


def loaded_step(lm, path, **options):
    ours = np.asarray(lm.params["embedder"]["embedding"])
    theirs = np.asarray(slmjax.load(path, **options).params["embedder"]["embedding"])
    return round(float(theirs.ravel()[0] / ours.ravel()[0]))


@pytest.mark.parametrize(("checkpoint", "step"), [(None, 10), ("latest", 10), ("best", 4), (2, 2), ("8", 8)])
def test_a_checkpoint_is_chosen_by_name_or_step(run, lm, tmp_path, checkpoint, step):
    assert loaded_step(lm, run, checkpoint=checkpoint) == step
    if checkpoint is not None:
        assert inspect(run, checkpoint=checkpoint)["step"] == step
    if checkpoint == "best":
        assert loaded_step(lm, convert(run, tmp_path / "out", checkpoint=checkpoint)) == step


def test_after_early_stopping_the_best_is_loaded(run, lm, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for metric, best in (("validation_loss", 4), ("validation_accuracy", 8)):
        Description(kind="run", model=lm.config, loaded="best", best_metric=metric).write(tmp_path / "run")
        assert loaded_step(lm, tmp_path / "run") == best
        assert loaded_step(lm, tmp_path / "run", checkpoint="latest") == 10
        assert inspect(tmp_path / "run")["best_step"] == best
    Description(kind="run", model=lm.config, loaded="best", best_metric="none").write(tmp_path / "run")
    assert loaded_step(lm, tmp_path / "run") == 10
    with pytest.raises(UserError, match=r"None of the checkpoints of .* has a none"):
        slmjax.load(tmp_path / "run", checkpoint="best")


@pytest.mark.parametrize("checkpoint", ["worst", "", "-2", "4.0", 3, True, "9" * 30])
def test_a_checkpoint_that_is_not_there_is_told(run, checkpoint):
    with pytest.raises(UserError, match=r"must be best, latest or the number of a step|choose one of 2, 4, 6, 8, 10"):
        slmjax.load(run, checkpoint=checkpoint)


def test_only_runs_have_checkpoints(run, saved):
    for path in (saved, run / "checkpoints" / "4"):
        with pytest.raises(UserError, match="has no checkpoints to choose from"):
            slmjax.load(path, checkpoint="latest")


@pytest.fixture
def tuned(lm, tmp_path, monkeypatch):
    """A directory with a base and a fine-tune of it, whose base was named relative to that directory."""
    place = tmp_path / "lab"
    slmjax.save(lm, place / "base")
    base = slmjax.load(place / "base", dtype="float32")
    peft = PeftConfig(method="lora", base="base", fingerprint=fingerprint(base.params), lora=LoraConfig(r=2))
    trained, _ = make_method(peft, Transformer(lm.config)).split(base.params, jax.random.key(0))
    checkpointer = Checkpointer(place / "runs" / "tuned" / "checkpoints")
    checkpointer.save(1, {"params": jax.tree.map(lambda x: x + 0.1, trained)}, position={}, run_config={})
    checkpointer.close()
    run = Description(kind="run", model=lm.config, peft=peft)
    places = (str(place / "base"), "../../base")
    dataclasses.replace(run, base_places=places).write(place / "runs" / "tuned")
    monkeypatch.chdir("/")
    return place, run


def embedding(path, **options):
    return np.asarray(slmjax.load(path, **options).params["embedder"]["embedding"])


@pytest.mark.parametrize("old", [False, True], ids=["place recorded", "of an earlier version"])
def test_a_base_is_found_from_anywhere_and_where_both_have_moved(tuned, tmp_path, old):
    place, run = tuned
    if old:
        run.write(place / "runs" / "tuned")
    expected = embedding(place / "runs" / "tuned")
    place.rename(tmp_path / "elsewhere")
    assert np.array_equal(embedding(tmp_path / "elsewhere" / "runs" / "tuned"), expected)


def test_another_model_at_the_old_place_is_passed_by(tuned, lm, tmp_path):
    place, _ = tuned
    expected = embedding(place / "runs" / "tuned")
    (place / "runs" / "tuned").rename(tmp_path / "tuned")  # alone: the absolute path still holds
    assert np.array_equal(embedding(tmp_path / "tuned"), expected)
    slmjax.save(dataclasses.replace(lm, params=scaled(lm.params, 2)), tmp_path / "base")
    (tmp_path / "x").mkdir()
    (tmp_path / "tuned").rename(tmp_path / "x" / "tuned")
    (tmp_path / "x" / "y").mkdir()
    (tmp_path / "x" / "tuned").rename(tmp_path / "x" / "y" / "tuned")  # ../../base is the other one now
    assert np.array_equal(embedding(tmp_path / "x" / "y" / "tuned"), expected)


def test_a_base_may_be_given_and_must_be_if_it_is_nowhere(tuned, tmp_path):
    place, _ = tuned
    expected = embedding(place / "runs" / "tuned")
    (place / "base").rename(tmp_path / "far")
    with pytest.raises(UserError, match=r"was fine-tuned from base, which is not here: give it \(--base"):
        slmjax.load(place / "runs" / "tuned")
    assert np.array_equal(embedding(place / "runs" / "tuned", base=tmp_path / "far"), expected)
    with pytest.raises(UserError, match="There is no model at"):
        slmjax.load(place / "runs" / "tuned", base=tmp_path / "farther")


def test_a_run_that_has_its_weights_takes_no_base(run, saved):
    with pytest.raises(UserError, match="takes no base"):
        slmjax.load(run, base=saved)


def test_an_adapter_names_its_base_so_that_it_is_found(tuned, tmp_path):
    place, _ = tuned
    expected = embedding(place / "runs" / "tuned")
    adapter = convert(place / "runs" / "tuned", place / "adapter", format="peft")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((place / "base").resolve())
    assert np.allclose(embedding(adapter), expected)
    for named in ("base", "../base"):  # as others write it, and both moved
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
        assert np.allclose(embedding(adapter), expected)
