"""PubMedQA (Jin et al. 2019, arXiv:1909.06146), expert-labelled: does an abstract answer its question yes, no or maybe.

The prompt and the choice by log-likelihood are lm-evaluation-harness's (task `pubmedqa`). The 500 test
questions are those of the authors' test_ground_truth.json; the other 500 are for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.evaluation.tasks.choices import loglikelihoods
from slmjax.evaluation.tasks.task import Item, Judge, Metric, Prediction, Result, Settings, check_settings, result_of
from slmjax.files import local_path
from slmjax.inference.language_model import LanguageModel
from slmjax.untrusted import read_json

SPLITS = ("train", "test")
ANSWERS = ("yes", "no", "maybe")
QUESTIONS, TEST = "ori_pqal.json", "test_ground_truth.json"


def read_pubmedqa(directory: str | Path, split: str) -> list[dict[str, str]]:
    """{"prompt", "completion"} of each question of a split ("train" or "test"), in the order of the file."""
    if split not in SPLITS:
        raise UserError(f"The split {split!r} is unknown: choose train or test.")
    directory = local_path(directory, "The directory of the data")
    questions, test = _read(directory / QUESTIONS), _read(directory / TEST)
    records = []
    for number, entry in questions.items():
        if (number in test) == (split == "test"):
            try:
                text = "\n".join(entry["CONTEXTS"])
                prompt = f"Abstract: {text}\nQuestion: {entry['QUESTION']}\nAnswer:"
                answer = entry["final_decision"].strip().lower()
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{directory / QUESTIONS}: question {number} lacks {error}.") from error
            if answer not in ANSWERS:
                raise UserError(
                    f"{directory / QUESTIONS}: question {number} has the answer {answer[:60]!r}, which is none of "
                    f"{', '.join(ANSWERS)}."
                )
            records.append({"prompt": prompt, "completion": f" {answer}"})
    if not records:
        raise UserError(f"{directory / QUESTIONS} has no question of the split {split!r}.")
    return records


def _gold(prediction: Prediction) -> int:
    return ANSWERS.index(prediction["gold"])


def _pair(prediction: Prediction) -> tuple[int, int]:
    return ANSWERS.index(prediction["answer"]), _gold(prediction)


def _macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    chosen, right = np.asarray(pairs).T
    return macro_f1(chosen, right, len(ANSWERS))


def _share_of_most_frequent(golds: Sequence[int]) -> float:
    return float(np.bincount(golds).max() / len(golds))


@dataclass(frozen=True)
class PubMedQA:
    """`accuracy` and `macro_f1` (the authors' two numbers), beside the accuracy of the most frequent answer."""

    name: str = "pubmedqa"
    splits: tuple[str, ...] = SPLITS
    takes_fewshot: bool = False
    choices: tuple[str, ...] = ANSWERS
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Numbers of a set of answers."""
        return {
            "accuracy": Metric(lambda prediction: prediction["answer"] == prediction["gold"]),
            "macro_f1": Metric(_pair, _macro_f1),
            "most_frequent_answer_accuracy": Metric(_gold, _share_of_most_frequent),
        }

    def items(self, directory: str | Path, split: str) -> list[Item]:
        """The questions of a split."""
        return read_pubmedqa(directory, split)

    def shots(self, directory: str | Path, count: int) -> list[Item]:
        """No examples: the task takes none."""
        return []

    def judging(self, directory: str | Path) -> AbstractContextManager[Judge]:
        """A context in which the likeliest answer is taken."""
        return nullcontext(_judge)

    def evaluate(self, lm: LanguageModel, directory: str | Path, settings: Settings) -> Result:
        """The answer whose log-likelihood is largest, to each question."""
        check_settings(self, settings)
        items = self.items(directory, settings.split)[: settings.limit or None]
        requests = [(item["prompt"], [f" {answer}" for answer in ANSWERS]) for item in items]
        scores = loglikelihoods(lm, requests, progress=settings.progress)
        return result_of(self, settings, [_judge(*pair) for pair in zip(items, scores, strict=True)])

    def records(self, directory: str | Path, split: str) -> tuple[list[dict[str, str]], list[str]]:
        """All questions of a split; none is left out."""
        return read_pubmedqa(directory, split), []


def _judge(item: Item, log_likelihoods: Sequence[float]) -> Prediction:
    answer, gold = ANSWERS[int(np.argmax(log_likelihoods))], item["completion"].strip()
    return {"prompt": item["prompt"], "gold": gold, "answer": answer, "log_likelihoods": list(log_likelihoods)}


def macro_f1(chosen: np.ndarray, right: np.ndarray, num_classes: int) -> float:
    """The mean over classes of the harmonic mean of precision and recall; 0 for a class that is never chosen."""
    scores = []
    for c in range(num_classes):
        hits = float(((chosen == c) & (right == c)).sum())
        total = float((chosen == c).sum() + (right == c).sum())
        scores.append(2 * hits / total if total else 0.0)
    return float(np.mean(scores))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
