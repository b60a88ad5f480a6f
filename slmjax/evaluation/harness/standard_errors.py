"""Standard errors in closed form.

The harness draws 100,000 bootstrap samples for every metric that is no mean, in forked processes, which JAX does not
survive. Means have their usual error, perplexities that of the delta method, F1 and Matthews' correlation that of the
jackknife over their few kinds of items. Others (BLEU, chrF, a median) have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics

from slmjax.evaluation.tasks.needle.task import OF_ANOTHER_LENGTH, mean_of_length

_KINDS = 64  # of items at most that the jackknife goes through
NONE = "N/A"  # as the harness writes it


def standard_error(aggregation: Callable[[Sequence[Any]], float], items: Sequence[Any]) -> float | str:
    """The standard error of what an aggregation of the harness makes of its items; "N/A" where there is none."""
    if len(items) < 2:
        return NONE
    if aggregation is metrics.mean:
        return _of_mean(np.asarray(items, float))
    if aggregation is metrics.nanmean:
        values = np.asarray(items, float)
        return _of_mean(values[~np.isnan(values)])
    if aggregation is mean_of_length:
        values = np.asarray(items, float)
        return _of_mean(values[values != OF_ANOTHER_LENGTH])
    if aggregation is metrics.acc_all:
        return float(metrics.acc_all_stderr(items))
    if aggregation is metrics.perplexity:
        return aggregation(items) * _of_mean(np.asarray(items, float))
    if aggregation is metrics.weighted_perplexity:
        return aggregation(items) * _of_ratio(items)
    if aggregation is metrics.bits_per_byte:
        return _of_ratio(items) / math.log(2)
    if aggregation in (metrics.f1_score, metrics.matthews_corrcoef):
        return _by_jackknife(aggregation, items)
    return NONE


def _of_mean(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _of_ratio(items: Sequence[tuple[float, float]]) -> float:
    """Of sum(a) / sum(b) over pairs, by the delta method."""
    a, b = np.asarray(items, float).T
    rest = a - a.sum() / b.sum() * b
    return math.sqrt(len(a) / (len(a) - 1) * (rest**2).sum()) / b.sum()


def _by_jackknife(aggregation: Callable[[Sequence[Any]], float], items: Sequence[Any]) -> float | str:
    """Leaving each item out in turn; equal ones give the same, so each kind is left out once."""
    kinds = Counter((_plain(gold), _plain(chosen)) for gold, chosen in items)
    if len(kinds) > _KINDS:
        return NONE
    values, counts = [], []
    for kind, count in kinds.items():
        rest = kinds - Counter([kind])
        values.append(float(aggregation(list(rest.elements()))))
        counts.append(count)
    n, mean = len(items), np.average(values, weights=counts)
    return math.sqrt((n - 1) / n * float(np.dot(counts, (np.asarray(values) - mean) ** 2)))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def add_standard_errors(results: dict[str, Any], tasks: dict[str, Any], groups: dict[str, Any]) -> None:
    """Put the errors of tasks, and of the groups over them as the harness weights them, into its results.

    tasks, groups: its `Task` and `Group` objects by name. The results must hold the samples.
    """
    scores = results["results"]
    for name, task in tasks.items():
        values: dict[tuple[str, str], list[Any]] = {}
        for sample in results["samples"][name]:
            for metric in sample["metrics"]:
                values.setdefault((metric, sample["filter"]), []).append(sample[metric])
        aggregations = task.aggregation()
        for (metric, filter), items in values.items():
            error = standard_error(aggregations.get(metric, metrics.mean), items)
            scores[name][f"{metric}_stderr,{filter}"] = error
    for name in results.get("groups", {}):
        scores[name] = groups[name].aggregate(scores)
        results["groups"][name] = dict(scores[name])
