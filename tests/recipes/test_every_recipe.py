"""The one test that every recipe passes: killed anywhere and continued, every array and every number is the same."""

import hashlib
import json
import random

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.training import loop
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.interrupts import StopRequest
from slmjax.training.reporting.metrics import MetricsWriter
from tests.recipes.online import online
from tests.recipes.pairwise import pairwise

TIMES = ("tokens_per_second", "mfu", "data_wait", "memory_bytes")


class Killed(BaseException):
    """Raised in place of a signal that leaves no time for anything."""


@pytest.fixture
def killed_at(monkeypatch):
    """killed_at(n): the n-th time that a run takes a batch, writes a line or begins a save, it dies. None: never."""

    def arm(number):
        events = 0

        def watch(owner, name):
            original = getattr(owner, name)

            def method(self, *args, **kwargs):
                nonlocal events
                events += 1
                if events == number:
                    raise Killed
                return original(self, *args, **kwargs)

            monkeypatch.setattr(owner, name, method)

        for owner, name in ((MetricsWriter, "write"), (Checkpointer, "save"), (loop.Journal, "profile")):
            watch(owner, name)

    return arm


def left_behind(recipe, workdir):
    """Everything that a run wrote: every array of its last checkpoint, its position, every number."""
    restored = Checkpointer(workdir / loop.CHECKPOINTS).restore_latest(recipe.program.stored)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    samples = workdir / "samples.jsonl"
    files = samples.read_text() if samples.exists() else ""
    leaves = jax.tree_util.tree_leaves_with_path((jax.device_get(restored.state), restored.position))
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    digests = {path: (str(x.dtype), x.shape, hashlib.sha256(x.tobytes()).hexdigest()) for path, x in arrays.items()}
    return restored.step, numbers, files, digests


@pytest.fixture(params=["pairwise", "online", "pretraining", "finetuning", "finetuning_on_tasks"])
def make(request):
    """make(workdir): a new recipe, as a new process would make it."""
    small = {"pairwise": pairwise, "online": online}
    return small[request.param] if request.param in small else request.getfixturevalue(request.param)


@pytest.mark.slow
def test_killed_anywhere_and_continued_it_is_the_same_run(make, tmp_path, killed_at, monkeypatch):
    recipe = make(tmp_path / "straight")
    straight = loop.train(recipe, tmp_path / "straight", say=lambda message: None)
    assert straight.step == straight.total_steps
    expected = left_behind(recipe, tmp_path / "straight")

    rng, workdir, deaths = random.Random(0), tmp_path / "killed", 0
    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.undo()
            killed_at(rng.randint(2, 12))
            try:
                loop.train(make(workdir), workdir, say=lambda message: None)
            except Killed:
                deaths += 1
        monkeypatch.undo()
    assert deaths >= 2
    stopped = 0
    with monkeypatch.context() as patched:  # SIGTERM, which saves first

        def wanted(self, step):
            nonlocal stopped
            stopped += 1
            self.signal = 15 if stopped == 2 else None
            return stopped == 2

        patched.setattr(StopRequest, "wanted", wanted)
        loop.train(make(workdir), workdir, say=lambda message: None)
    recipe = make(workdir)
    ended = loop.train(recipe, workdir, say=lambda message: None)
    assert (ended.step, ended.stopped_by) == (straight.step, None)
    found = left_behind(recipe, workdir)
    assert found[:3] == expected[:3]
    assert not {path: (found[3].get(path), one) for path, one in expected[3].items() if found[3].get(path) != one}
    assert found[3].keys() == expected[3].keys()


def test_a_recipe_without_a_field_of_its_batch_is_refused(make, tmp_path):
    recipe = make(tmp_path)
    kind = next(iter(recipe.program.kinds))
    with pytest.raises(UserError, match="has no field"):
        loop.to_devices({}, recipe.program.kinds[kind].batch)
    extra = {name: np.zeros(field.shape, field.dtype) for name, field in recipe.program.kinds[kind].batch.items()}
    with pytest.raises(UserError, match="'unheard_of', which its step does not take"):
        loop.to_devices({**extra, "unheard_of": np.zeros(3)}, recipe.program.kinds[kind].batch)
