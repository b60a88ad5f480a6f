"""Intervals, p-values and corrections of paired differences, against scipy's and by their own meaning."""

import math

import numpy as np
import pytest

from slmjax.evaluation.comparison.paired import (
    bootstrap_difference,
    holm,
    mcnemar,
    mean_difference,
    weighted_sum,
)


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (1, 0), (3, 12), (12, 3), (20, 20), (160, 210), (4000, 4300), (0, 2000)]
)
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    stats = pytest.importorskip("scipy.stats")
    n = only_a + only_b
    expected = stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_a_mean_has_millers_paired_interval_and_the_z_test():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).random((2, 300))
    d = a - b
    found = mean_difference(a, b)
    error = d.std(ddof=1) / math.sqrt(300)
    assert (found.low, found.high) == pytest.approx((d.mean() - 1.96 * error, d.mean() + 1.96 * error), rel=1e-12)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(d.mean() / error)), rel=1e-9)
    # Var(a - b) = Var(a) + Var(b) - 2 Cov(a, b), section 4.2: pairing narrows the interval where models agree.
    both = mean_difference(a + 5 * b, b + 5 * b)
    assert both.high - both.low == pytest.approx(found.high - found.low)


def test_clusters_of_copies_have_the_interval_of_the_originals():
    """Each item given four times says no more than the items once; taken as independent it would halve the interval."""
    a, b = np.random.default_rng(1).integers(0, 2, (2, 200)).astype(float)
    copies = np.repeat(np.arange(200), 4)
    clustered = mean_difference(np.repeat(a, 4), np.repeat(b, 4), copies)
    alone, naive = mean_difference(a, b), mean_difference(np.repeat(a, 4), np.repeat(b, 4))
    assert clustered.difference == pytest.approx(alone.difference)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.01)
    assert naive.high - naive.low == pytest.approx((alone.high - alone.low) / 2, rel=0.01)
    assert (alone.test, clustered.test) == ("McNemar", "clustered z")


def test_singleton_clusters_are_independent_items():
    a, b = np.random.default_rng(2).random((2, 500))
    clustered, alone = mean_difference(a, b, np.arange(500)), mean_difference(a, b)
    assert clustered.high - clustered.low == pytest.approx((alone.high - alone.low) * math.sqrt(499 / 500))


def test_the_clustered_error_is_the_sum_over_pairs_of_a_cluster():
    """Equation 4 of Miller (2024): the variance plus the products of different items of one cluster."""
    rng = np.random.default_rng(3)
    a, b, clusters = rng.random(60), rng.random(60), rng.integers(0, 15, 60)
    d = a - b - (a - b).mean()
    products = sum(d[i] * d[j] for i in range(60) for j in range(60) if clusters[i] == clusters[j])
    found = mean_difference(a, b, clusters)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(products) / 60)


def perplexity(x):
    return np.exp(-x)


def test_the_bootstrap_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    a = -rng.gamma(2.0, 1.5, 400)
    b = a - rng.normal(0.05, 0.4, 400)

    def statistic(x, y, axis):
        return np.exp(-x.mean(axis)) - np.exp(-y.mean(axis))

    reference = stats.bootstrap(
        (a, b),
        statistic,
        paired=True,
        method="percentile",
        n_resamples=10_000,
        batch=1000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = bootstrap_difference(a, b, np.ones(400), perplexity)
    width = reference.high - reference.low
    assert found.difference == pytest.approx(np.exp(-a.mean()) - np.exp(-b.mean()))
    assert found.low == pytest.approx(reference.low, abs=0.03 * width)
    assert found.high == pytest.approx(reference.high, abs=0.03 * width)
    assert found == bootstrap_difference(a, b, np.ones(400), perplexity)  # seeded


def test_the_bootstrap_is_paired_and_weighted():
    """A model that is worse by the same share of every page has an interval without width."""
    rng = np.random.default_rng(6)
    words = rng.integers(50, 5000, 62).astype(float)
    a = -3.0 * words
    found = bootstrap_difference(a, a - 0.1 * words, words, perplexity)
    assert found.difference == pytest.approx(math.exp(3.0) - math.exp(3.1))
    assert found.low == pytest.approx(found.high) == pytest.approx(found.difference)
    assert found.p == pytest.approx(2 / 10_001)
    same = bootstrap_difference(a, a, words, perplexity)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_bootstrap_draws_clusters_whole():
    rng = np.random.default_rng(7)
    a, b = -rng.gamma(2.0, 1.0, (2, 100))
    alone = bootstrap_difference(a, b, np.ones(100), perplexity)
    copies = bootstrap_difference(
        *(np.repeat(x, 3) for x in (a, b, np.ones(100))), perplexity, np.repeat(range(100), 3)
    )
    assert copies[:4] == pytest.approx(alone[:4], rel=1e-9)


@pytest.mark.parametrize("units", [1, 2, 3, 5])
def test_few_items_are_never_sure(units):
    a, b = np.linspace(0.5, 0.6, units), np.linspace(0.1, 0.2, units)
    for found in (
        mean_difference(a, b),
        bootstrap_difference(a, b, np.ones(units), perplexity),
        mean_difference(np.ones(units), np.zeros(units)),
        mean_difference(np.repeat(a, 2), np.repeat(b, 2), np.repeat(np.arange(units), 2)),
    ):
        assert found.p >= 2.0 ** (1 - units)
        assert math.isnan(found.low) == (units == 1)


def test_noise_is_called_a_difference_one_time_in_twenty():
    """Under no difference p-values are below 0.05 about that often; the exact test is never more often."""
    rng = np.random.default_rng(8)
    trials = 2000
    right, left = rng.random((2, trials, 120)) < 0.6
    exact = np.mean(
        [mean_difference(x.astype(float), y.astype(float)).p < 0.05 for x, y in zip(right, left, strict=True)]
    )
    z = np.mean([mean_difference(*rng.random((2, 120))).p < 0.05 for _ in range(trials)])
    assert exact <= 0.05
    assert 0.035 < z < 0.067


def test_holm_is_the_step_down_of_bonferroni():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    rng = np.random.default_rng(9)
    p = rng.random(40) ** 3
    adjusted = np.array(holm(p.tolist()))
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all()  # in the order of p
    assert (adjusted >= p).all() and (adjusted <= np.minimum(40 * p, 1)).all()  # between none and Bonferroni
    for level in (0.01, 0.05, 0.2):  # rejects what the step-down procedure does
        rejected = 0
        while rejected < 40 and p[order[rejected]] < level / (40 - rejected):
            rejected += 1
        assert (adjusted < level).sum() == rejected


def test_a_group_by_size_has_its_tasks_pooled_error():
    rng = np.random.default_rng(10)
    sizes = (40, 160)
    tasks = [mean_difference(*rng.random((2, n))) for n in sizes]
    errors = [(d.high - d.low) / 2 / 1.96 for d in tasks]
    found = weighted_sum([0.2, 0.8], tasks, 200)
    assert found.difference == pytest.approx(0.2 * tasks[0].difference + 0.8 * tasks[1].difference)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(math.hypot(0.2 * errors[0], 0.8 * errors[1]))
