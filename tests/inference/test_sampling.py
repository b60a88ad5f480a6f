"""What is drawn from, against the definition and against transformers; a row depends on its own key and logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.inference.sampling import GREEDY, Sampling, filtered_logits, penalized_logits, sample

LOGITS_BV = 3 * np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
SETTINGS = [
    Sampling(1.0, 0, 0.9),
    Sampling(0.7, 10, 1.0),
    Sampling(0.7, 10, 0.5),
    Sampling(1.5, 0, 0.01),
    Sampling(2.0, 1000, 0.99),
    Sampling(1.0, min_p=0.1),
    Sampling(0.7, 20, 0.9, 0.05),
    Sampling(1.3, 0, 0.8, 0.3, repetition_penalty=1.3),
    Sampling(0.9, 5, 1.0, 0.0, repetition_penalty=0.8),
]


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("p", [1e-6, 0.2, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    kept_BV = np.isfinite(filtered_logits(jnp.asarray(LOGITS_BV), Sampling(1.0, 0, p)))
    probs_BV = np.asarray(jax.nn.softmax(LOGITS_BV, axis=-1), np.float64)
    for kept, probs in zip(kept_BV, probs_BV, strict=True):
        assert kept.any() and probs[kept].sum() >= p - 1e-6
        assert probs[kept].sum() - probs[kept].min() < p + 1e-6  # without its least likely it would not reach p
        assert kept.all() or probs[kept].min() >= probs[~kept].max()


def test_of_equally_likely_tokens_no_more_stay_than_needed():
    kept = np.isfinite(filtered_logits(jnp.zeros((1, 8)), Sampling(1.0, 0, 0.5)))[0]
    assert kept.tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("sampling", SETTINGS)
def test_transformers_draws_from_the_same(sampling):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    scores, held = torch.tensor(LOGITS_BV), np.random.default_rng(1).integers(0, 40, (5, 12))
    warpers = [transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    warpers += [transformers.TemperatureLogitsWarper(sampling.temperature)]
    warpers += [transformers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [transformers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [transformers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for warper in warpers:
        scores = warper(torch.tensor(held), scores)
    seen_BV = np.zeros(LOGITS_BV.shape, bool)
    np.put_along_axis(seen_BV, held, True, axis=1)
    penalized = penalized_logits(jnp.asarray(LOGITS_BV), seen_BV, sampling.repetition_penalty)
    ours = jax.nn.softmax(filtered_logits(penalized, sampling), axis=-1)
    np.testing.assert_allclose(ours, torch.softmax(scores, -1).numpy(), atol=1e-6)


def test_min_p_keeps_what_is_a_share_as_likely_as_the_best():
    probs = jnp.asarray([[0.5, 0.26, 0.2, 0.04]])
    for min_p, kept in ((0.01, 4), (0.1, 3), (0.5, 2), (0.6, 1), (1.0, 1)):
        assert np.isfinite(filtered_logits(jnp.log(probs), Sampling(1.0, min_p=min_p))).sum() == kept


def test_draws_follow_the_probabilities():
    drawn = sample(jnp.tile(jnp.log(jnp.asarray([[0.5, 0.3, 0.2]])), (4000, 1)), keys(4000), Sampling(1.0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("sampling", [Sampling(1e-30), Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), GREEDY])
def test_every_limit_is_greedy(sampling):
    np.testing.assert_array_equal(sample(jnp.asarray(LOGITS_BV), keys(5), sampling), LOGITS_BV.argmax(-1))


def test_a_row_is_a_function_of_its_logits_and_key():
    sampling = Sampling(1.0, 20, 0.9)
    together = sample(jnp.asarray(LOGITS_BV), keys(5), sampling)
    alone = [int(sample(jnp.asarray(LOGITS_BV[i : i + 1]), keys(5)[i : i + 1], sampling)[0]) for i in range(5)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
