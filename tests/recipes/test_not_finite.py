"""Numbers that are not finite: never the best, never in JSON, and a run of nothing else is no success."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.quantities import json_text
from slmjax.recipes.observers.early_stopping import EarlyStopping
from slmjax.recipes.train import train
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.checkpoints.retention import best_first, steps_to_keep

LOSSES = st.lists(
    st.one_of(st.floats(0, 10), st.sampled_from([math.nan, math.inf, -math.inf])), min_size=1, max_size=12
)

VALUES = st.recursive(
    st.floats() | st.text(max_size=3) | st.none(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=3),
    max_leaves=8,
)


@given(LOSSES)
def test_early_stopping_takes_the_lowest_finite_loss(losses):
    stopper = EarlyStopping(1000, 0.0, workdir=None)
    for step, loss in enumerate(losses, 1):
        stopper.see(step, loss)
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert stopper.best == (min(finite) if finite else None)
    assert stopper.best_step == (1 + losses.index(min(finite)) if finite else None)
    assert stopper.waited == len(losses) - (stopper.best_step or 0)


def test_early_stopping_ends_a_run_of_nothing_else_and_says_so():
    stopper = EarlyStopping(2, 0.0, workdir=None)
    for step in (1, 2):
        assert not stopper.verdict and not stopper.keep
        stopper.see(step, math.nan)
    assert stopper.verdict == "Stopped early: 2 evaluations without a finite validation loss."
    stopper.seek({"best": math.nan, "best_step": 1, "waited": 0})  # of a version that took NaN for a loss to beat
    stopper.see(2, 3.0)
    assert (stopper.best, stopper.best_step) == (3.0, 2)


@given(LOSSES)
def test_the_best_checkpoint_has_a_finite_score_and_an_accuracy_is_best_when_high(scores):
    steps = dict(enumerate(scores, 1))
    finite = sorted((score, -step) for step, score in steps.items() if math.isfinite(score))
    assert best_first(steps, "validation_loss") == [-step for _, step in finite]
    for metric, worst_first in (("validation_accuracy", True), ("task/x", True), ("general_loss", False)):
        kept = steps_to_keep(steps, CheckpointConfig(keep_last=1, keep_best=1, best_metric=metric))
        best = [steps[step] for step in kept - {max(steps)}]
        if best:
            assert best[0] == (max if worst_first else min)(finite)[0]


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_json_is_json(value):
    def fail(constant):
        raise AssertionError(constant)

    json.loads(json_text(value), parse_constant=fail)


@pytest.mark.slow
def test_a_run_of_which_no_step_was_accepted_is_refused_though_it_is_short(small_run, tmp_path):
    config, _ = small_run(**{"model.embedding_multiplier": 1e38, "model.init_std": 1e4})
    with pytest.raises(
        UserError, match="6 steps in a row were skipped up to step 6: the loss or gradient was not finite"
    ):
        train(config, tmp_path / "run")
