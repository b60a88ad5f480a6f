"""Two results of evaluations, item by item: which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError, first_few
from slmjax.evaluation.comparison.paired import (
    Difference,
    bootstrap_difference,
    holm,
    mean_difference,
    weighted_sum,
)
from slmjax.evaluation.comparison.results_files import Item, ResultsFile, read_items, read_results

LEVEL = 0.05  # of the adjusted p-value below which a difference is called more than noise
MIN_CLUSTERS = 10  # fewer say too little about how clusters differ: their items count as independent


def _mean(x: np.ndarray) -> np.ndarray:
    return x


def _bits(x: np.ndarray) -> np.ndarray:
    return -x / math.log(2)


# Metrics that are no means: what of (sum of log-likelihoods / sum of weights) is the score.
_LIKELIHOODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "perplexity": lambda x: np.exp(-x),
    "word_perplexity": lambda x: np.exp(-x),
    "byte_perplexity": lambda x: np.exp(-x),
    "bits_per_byte": _bits,
}


@dataclass(frozen=True)
class Row:
    """One metric of a task, or of a group of tasks, under both models.

    Attributes:
        task, metric, filter: what is compared, as the harness names it.
        items: on which both were measured; clusters: groups of items that belong together, 0 where each stands alone.
        a, b: the scores.
        difference, low, high: A - B and its 95% interval; NaN where there are too few items for one.
        p, test: two-sided p-value, and the test that gave it.
        p_holm: the p-value adjusted for all rows of the comparison.
        higher_is_better: whether a larger score is a better one.
        verdict: in words.
    """

    task: str
    metric: str
    filter: str
    items: int
    clusters: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    test: str
    p_holm: float
    higher_is_better: bool
    verdict: str

    @property
    def better(self) -> str:
        """The model that is better by more than noise, "A" or "B"; "" for neither."""
        if not self.p_holm < LEVEL or self.difference == 0:
            return ""
        return "A" if (self.difference > 0) == self.higher_is_better else "B"


@dataclass(frozen=True)
class Comparison:
    """The rows of a comparison.

    Attributes:
        a, b: what the two are called.
        rows: tasks in the order of A's results, then groups.
        notes: sentences about what was not compared.
    """

    a: str
    b: str
    rows: list[Row]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"a": self.a, "b": self.b, "rows": [asdict(row) for row in self.rows], "notes": self.notes}


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> Comparison:
    """Compare two files of results, each with its samples beside it, over the tasks that both have.

    seed: of the bootstrap of perplexities.

    Raises:
        UserError: a file is missing or damaged, the two have no task in common, or a task's items are not the same.
    """
    files = read_results(a), read_results(b)
    tasks = [task for task in files[0].tasks if task in files[1].tasks]
    if not tasks:
        raise UserError(
            f"{a} and {b} have no task in common ({first_few(files[0].tasks)}; {first_few(files[1].tasks)}): "
            "compare two models on the same tasks."
        )
    notes = [
        f"{first_few(only, 5)} only in {name}."
        for name, mine, other in (("A", files[0], files[1]), ("B", files[1], files[0]))
        if (only := [task for task in mine.tasks if task not in other.tasks])
    ]
    rows = [row for task in tasks for row in _rows_of_task(files, task, notes, seed)]
    rows += [row for group in files[0].groups for row in _rows_of_group(files, group, rows)]
    if not rows:
        raise UserError(f"{a} and {b} have no metric that can be compared item by item ({first_few(notes)}).")
    adjusted = holm([row.p for row in rows])
    rows = [_judged(replace(row, p_holm=p)) for row, p in zip(rows, adjusted, strict=True)]
    names = _names(files)
    return Comparison(names[0], names[1], rows, notes)


def _rows_of_task(files: tuple[ResultsFile, ResultsFile], task: str, notes: list[str], seed: int) -> Iterable[Row]:
    samples = [read_items(file, task) for file in files]
    versions = [file.versions.get(task) for file in files]
    if versions[0] != versions[1]:
        notes.append(f"{task}: version {versions[0]} in A, {versions[1]} in B, which may count otherwise.")
    for filter in samples[0]:
        if filter not in samples[1]:
            notes.append(f"{task}: the filter {filter} only in A.")
            continue
        pairs = _pairs(files, task, samples[0][filter], samples[1][filter])
        for metric in pairs[0][0].values:
            key = f"{metric},{filter}"
            row = _row(files, task, metric, filter, pairs, seed)
            if isinstance(row, str):
                notes.append(f"{task}: {key} is left out, {row}.")
            else:
                yield row


def _pairs(
    files: tuple[ResultsFile, ResultsFile], task: str, a: dict[int, Item], b: dict[int, Item]
) -> list[tuple[Item, Item]]:
    """Both models' items in the order of doc_id. UserError unless they are the same, down to the prompts."""
    if missing := sorted(a.keys() ^ b.keys()):
        raise UserError(
            f"{task} has {len(a):,} items in A and {len(b):,} in B, and {len(missing):,} are not in both "
            f"({first_few([str(i) for i in missing])}): evaluate both models on the same items (the same --limit)."
        )
    for what, place in (("document", 0), ("target", 2), ("prompt", 1)):
        other = [i for i in sorted(a) if a[i].hashes[place] != b[i].hashes[place]]
        if other:
            shots = [file.shots.get(task) for file in files]
            why = f"{shots[0]} shots in A, {shots[1]} in B" if shots[0] != shots[1] else f"{len(other):,} of {len(a):,}"
            raise UserError(
                f"{task}: item {other[0]} has another {what} in B than in A ({why}): compare runs with the same data, "
                "shots, seed, chat template and version of the task."
            )
    return [(a[i], b[i]) for i in sorted(a)]


def _row(
    files: tuple[ResultsFile, ResultsFile],
    task: str,
    metric: str,
    filter: str,
    pairs: list[tuple[Item, Item]],
    seed: int,
) -> Row | str:
    """The row of a metric, or why there is none."""
    values, clusters = _values(metric, pairs)
    if isinstance(values, str):
        return values
    _, clusters_N = np.unique(clusters, return_inverse=True)
    num_clusters = int(clusters_N.max()) + 1
    if not MIN_CLUSTERS <= num_clusters < len(clusters):
        num_clusters = 0
    at = clusters_N if num_clusters else None
    a_N, b_N, weights_N = values
    told = [file.scores[task].get(f"{metric},{filter}", math.nan) for file in files]
    for score in (_LIKELIHOODS.get(metric, _mean), _mean):
        scores = [float(score(x_N.sum() / weights_N.sum())) for x_N in (a_N, b_N)]
        if _same(scores, told):
            break
    else:
        return "as its score is not one that its items give by a mean"
    if score is _mean:
        difference = mean_difference(a_N, b_N, at)
    else:
        difference = bootstrap_difference(a_N, b_N, weights_N, score, at, seed=seed)
    better = files[0].higher_is_better.get(task, {}).get(metric, score is _mean) is True
    return _new_row(task, metric, filter, (len(a_N), num_clusters), scores, difference, better)


def _values(metric: str, pairs: list[tuple[Item, Item]]) -> tuple[tuple[np.ndarray, ...] | str, list[str]]:
    """float64 arrays [N] of A's and B's values and their weights, and which cluster each belongs to.

    A metric with several values an item (a verdict on each instruction of ifeval) has an entry for each.
    """
    numbers: list[tuple[float, float, float]] = []
    clusters: list[str] = []
    for number, (a, b) in enumerate(pairs):
        x, y = a.values.get(metric), b.values.get(metric)
        if metric.isdigit() and x == y == -1:  # a needle at another length
            continue
        own = f"\0{number}"  # no other item's
        if isinstance(x, float) and isinstance(y, float):
            numbers.append((x, y, 1.0))
            clusters.append(a.cluster or own)
        elif not isinstance(x, tuple) or not isinstance(y, tuple) or len(x) != len(y):
            return "as it is not a number for every item", []
        elif metric in _LIKELIHOODS:
            if len(x) != 2 or x[1] != y[1] or x[1] <= 0:
                return "as its items are not log-likelihoods over the same words or bytes", []
            numbers.append((x[0], y[0], x[1]))
            clusters.append(a.cluster or own)
        elif set(x) | set(y) <= {0.0, 1.0} and "f1" not in metric and "mcc" not in metric:
            numbers += [(v, w, 1.0) for v, w in zip(x, y, strict=True)]
            clusters += [own] * len(x)
        else:
            return "as it is not a number for every item", []
    return tuple(np.array(numbers).T) if numbers else "as no item has it", clusters


def _same(scores: Sequence[float], told: Sequence[float]) -> bool:
    """Whether these are the scores of the files of results."""
    return all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-9) for x, y in zip(scores, told, strict=True))


def _rows_of_group(files: tuple[ResultsFile, ResultsFile], group: str, rows: Sequence[Row]) -> Iterable[Row]:
    """Rows of a group, for metrics whose score is its tasks' mean, by their sizes or plain."""
    members = _leaves(files[0], group)
    if group not in files[1].scores or set(_leaves(files[1], group)) != set(members):
        return
    for key, told in files[0].scores[group].items():
        metric, _, filter = key.partition(",")
        mine = [row for row in rows if row.task in members and (row.metric, row.filter) == (metric, filter)]
        if len(mine) < 2 or any(row.metric in _LIKELIHOODS for row in mine):
            continue
        items = sum(row.items for row in mine)
        for weights in ([row.items / items for row in mine], [1 / len(mine)] * len(mine)):
            scores = [sum(w * getattr(row, side) for w, row in zip(weights, mine, strict=True)) for side in "ab"]
            if _same(scores, [told, files[1].scores[group].get(key, math.nan)]):
                parts = [Difference(row.difference, row.low, row.high, row.p, row.test) for row in mine]
                summed = weighted_sum(weights, parts, items)
                yield _new_row(group, metric, filter, (items, 0), scores, summed, mine[0].higher_is_better)
                break


def _leaves(file: ResultsFile, group: str) -> list[str]:
    """The tasks below a group, through groups in it; each once."""
    found: list[str] = []
    left, seen = [group], set()
    while left:
        name = left.pop(0)
        if name not in seen:
            seen.add(name)
            if name in file.groups:
                left += file.groups[name]
            else:
                found.append(name)
    return found


def _new_row(
    task: str,
    metric: str,
    filter: str,
    sizes: tuple[int, int],
    scores: Sequence[float],
    difference: Difference,
    better: bool,
) -> Row:
    a, b = scores
    items, clusters = sizes
    return Row(
        task,
        metric,
        filter,
        items,
        clusters,
        a,
        b,
        **difference._asdict(),
        p_holm=1.0,
        higher_is_better=better,
        verdict="",
    )


def _judged(row: Row) -> Row:
    verdict = f"{row.better} is better" if row.better else "no more than noise"
    return replace(row, verdict=verdict if row.difference or row.low else "no difference")


def _names(files: tuple[ResultsFile, ResultsFile]) -> list[str]:
    """What tells the two apart: the models' names, else the files'."""
    for names in ([file.model for file in files], [file.path.stem for file in files]):
        if all(names) and names[0] != names[1]:
            return names
    return [str(file.path) for file in files]
