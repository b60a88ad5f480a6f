"""PubMedQA (Jin et al. 2019, arXiv:1909.06146), expert-labelled: does an abstract answer its question yes, no or maybe.

The prompt and the choice by log-likelihood are lm-evaluation-harness's (task `pubmedqa`). The 500 test
questions are those of the authors' test_ground_truth.json; the other 500 are for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.evaluation.loglikelihood import loglikelihoods
from slmjax.evaluation.tasks.task import Result, Settings, check_settings
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


@dataclass(frozen=True)
class PubMedQA:
    """`accuracy` and `macro_f1` (the authors' two numbers), beside the accuracy of the most frequent answer."""

    name: str = "pubmedqa"
    splits: tuple[str, ...] = SPLITS
    takes_fewshot: bool = False

    def evaluate(self, lm: LanguageModel, directory: str | Path, settings: Settings) -> Result:
        """The answer whose log-likelihood is largest, to each question."""
        check_settings(self, settings)
        records = read_pubmedqa(directory, settings.split)[: settings.limit or None]
        requests = [(record["prompt"], [f" {answer}" for answer in ANSWERS]) for record in records]
        scores = loglikelihoods(lm, requests, progress=settings.progress)
        chosen = np.asarray(scores).argmax(1)
        right = np.asarray([ANSWERS.index(record["completion"].strip()) for record in records])
        numbers = {
            "accuracy": float((chosen == right).mean()),
            "macro_f1": macro_f1(chosen, right, len(ANSWERS)),
            "most_frequent_answer_accuracy": float(np.bincount(right).max() / len(right)),
        }
        predictions = [
            {"prompt": r["prompt"], "gold": r["completion"].strip(), "answer": ANSWERS[c], "log_likelihoods": list(s)}
            for r, c, s in zip(records, chosen.tolist(), scores, strict=True)
        ]
        return Result(self.name, settings.split, numbers, predictions)

    def records(self, directory: str | Path, split: str) -> tuple[list[dict[str, str]], list[str]]:
        """All questions of a split; none is left out."""
        return read_pubmedqa(directory, split), []


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
