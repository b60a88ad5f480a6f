"""Paired differences of two models on the same items: interval and p-value, and the correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.96  # standard errors to each side of a 95% interval
RESAMPLES = 10_000  # of the bootstrap
_DRAWN_AT_ONCE = 1 << 21  # indices of the bootstrap: 16 MB


class Difference(NamedTuple):
    """A difference A - B with its 95% interval, its two-sided p-value, and the name of the test that gave that.

    The interval is NaN where a single item, or a single cluster of items, says nothing about its spread.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


def mean_difference(a_N: np.ndarray, b_N: np.ndarray, clusters_N: np.ndarray | None = None) -> Difference:
    """Difference of two means over the same N items.

    The interval is that of the paired standard error, and of the clustered one where `clusters_N` (whole numbers from
    0 on) says which items belong together (Miller 2024, arXiv:2411.00640, sections 4.2 and 2.2). The p-value is the
    exact McNemar test's where all values are 0 or 1 and each item stands alone, otherwise that of the z-test.
    """
    d_N = a_N - b_N
    mean = float(d_N.mean())
    if clusters_N is None:
        units, error = len(d_N), _standard_error(d_N)
    else:
        sums_C = np.bincount(clusters_N, weights=d_N - mean)
        units, error = len(sums_C), float(np.sqrt(np.square(sums_C).sum())) / len(d_N)
    if units < 2:
        error = math.nan
    if clusters_N is None and np.isin(a_N, (0, 1)).all() and np.isin(b_N, (0, 1)).all():
        p, test = mcnemar(int((d_N > 0).sum()), int((d_N < 0).sum())), "McNemar"
    else:
        p, test = _z_test(mean, error, units), "z" if clusters_N is None else "clustered z"
    return Difference(mean, mean - Z * error, mean + Z * error, p, test)


def weighted_sum(weights: Sequence[float], differences: Sequence[Difference], units: int) -> Difference:
    """Difference of a group of tasks, whose score is a weighted sum of theirs; each task's items are drawn by itself.

    units: how many items the tasks have together.
    """
    total = sum(w * d.difference for w, d in zip(weights, differences, strict=True))
    error = math.sqrt(sum((w * (d.high - d.low) / (2 * Z)) ** 2 for w, d in zip(weights, differences, strict=True)))
    return Difference(total, total - Z * error, total + Z * error, _z_test(total, error, units), "z over tasks")


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value, from the numbers of items that one of the two models alone got right.

    It is the probability that a fair coin, thrown only_a + only_b times, falls at least as unevenly (McNemar 1947).
    """
    throws, fewer = only_a + only_b, min(only_a, only_b)
    ways, tail = 1, 1  # whole numbers, so that nothing is lost: of k heads, of at most k heads
    for k in range(1, fewer + 1):
        ways = ways * (throws - k + 1) // k
        tail += ways
    return min(2 * tail / 2**throws, 1.0)


def bootstrap_difference(
    a_N: np.ndarray,
    b_N: np.ndarray,
    weights_N: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    clusters_N: np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Difference of score(sum of log-likelihoods / sum of weights), as perplexities are, by the paired bootstrap.

    Items, or whole clusters of them, are drawn with replacement, the same for both models. The interval ends at the
    2.5th and the 97.5th percentile; p is twice the smaller share of resamples on a side of 0 (Efron and Tibshirani
    1993, chapters 13 and 16).

    a_N, b_N: summed log-likelihoods of each item, in nats. weights_N: what they are divided by (words, bytes, or 1).
    """
    sums_U3 = np.stack([a_N, b_N, weights_N], axis=1).astype(np.float64)
    if clusters_N is not None:
        sums_U3 = np.stack([np.bincount(clusters_N, weights=column) for column in sums_U3.T], axis=1)
    units = len(sums_U3)

    def differ(sums_R3: np.ndarray) -> np.ndarray:
        return score(sums_R3[:, 0] / sums_R3[:, 2]) - score(sums_R3[:, 1] / sums_R3[:, 2])

    difference = float(differ(sums_U3.sum(0, keepdims=True))[0])
    if units < 2:
        return Difference(difference, math.nan, math.nan, 1.0, "bootstrap")
    rng, drawn = np.random.default_rng(seed), np.empty(resamples)
    step = max(_DRAWN_AT_ONCE // units, 1)
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        chosen_RU = rng.integers(0, units, (rows, units))
        sums_R3 = np.stack([sums_U3[:, i][chosen_RU].sum(1) for i in range(3)], axis=1)
        drawn[first : first + rows] = differ(sums_R3)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(2 * (fewer + 1) / (resamples + 1), 1.0)
    return Difference(difference, low, high, max(p, _smallest(units)), "bootstrap")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, so that below 0.05 at most one time in twenty any is so by chance.

    The k-th smallest of m is multiplied by m - k + 1, and none is less than a smaller one's (Holm 1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted


def _standard_error(d_N: np.ndarray) -> float:
    return float(d_N.std(ddof=1) / math.sqrt(len(d_N))) if len(d_N) > 1 else math.nan


def _z_test(mean: float, error: float, units: int) -> float:
    """Two-sided p-value of a mean with its standard error."""
    if mean == 0 or math.isnan(error):
        return 1.0
    p = math.erfc(abs(mean) / error / math.sqrt(2)) if error else 0.0
    return max(p, _smallest(units))


def _smallest(units: int) -> float:
    """The p-value of so many differences that are all on one side of 0, by the sign test.

    What the other tests say below it rests on a spread that few items do not show.
    """
    return 2.0 ** (1 - units) if units < 1024 else 0.0
