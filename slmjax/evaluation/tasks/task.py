"""The interface of a task: its data, how a model is asked, and how its answers are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from slmjax.errors import UserError
from slmjax.inference.language_model import LanguageModel

Item = dict[str, Any]  # of the data: "prompt", "completion" (what would be right), and what the judge needs
Prediction = dict[str, Any]
Answer = str | Sequence[float]  # the text that the model wrote, or the log-likelihood of each choice
Judge = Callable[[Item, Any], Prediction]


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation.

    Attributes:
        split: the questions that are asked.
        limit: only the first so many of them; 0: all.
        num_fewshot: examples of the training split in front of each question, for tasks that take them.
        progress: show a bar on stderr.
    """

    split: str = "test"
    limit: int = 0
    num_fewshot: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Result:
    """Numbers and predictions of one evaluation.

    Attributes:
        task, split: what was evaluated.
        numbers: by name, the task's own.
        predictions: one dict a question, with the model's answer.
    """

    task: str
    split: str
    numbers: dict[str, float]
    predictions: list[Prediction]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the predictions last."""
        counts = {"task": self.task, "split": self.split, "questions": len(self.predictions)}
        return {**counts, **self.numbers, "predictions": self.predictions}


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


class Metric(NamedTuple):
    """One of a task's numbers: what counts of each prediction, and what is made of that over all of them."""

    value: Callable[[Prediction], Any]
    aggregate: Callable[[Sequence[Any]], float] = mean
    higher_is_better: bool = True


class Task(Protocol):
    """A task whose data lie in a directory.

    Attributes:
        name: by which users ask for it.
        splits: of its data.
        takes_fewshot: whether its prompts can have examples in front.
        choices: continuations of which the likeliest is the answer; () where the answer is generated.
        stop, max_new_tokens: the end of a generated answer.
        metrics: its numbers by name.
    """

    @property
    def name(self) -> str: ...
    @property
    def splits(self) -> tuple[str, ...]: ...
    @property
    def takes_fewshot(self) -> bool: ...
    @property
    def choices(self) -> tuple[str, ...]: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    def items(self, directory: str | Path, split: str) -> list[Item]:
        """The questions of a split. UserError for data that do not fit."""

    def shots(self, directory: str | Path, count: int) -> list[Item]:
        """So many examples for the front of each question."""

    def judging(self, directory: str | Path) -> AbstractContextManager[Judge]:
        """A context in which answers are judged."""

    def evaluate(self, lm: LanguageModel, directory: str | Path, settings: Settings) -> Result:
        """Ask the model. UserError for data or settings that do not fit (`check_settings`)."""

    def records(self, directory: str | Path, split: str) -> tuple[list[dict[str, str]], list[str]]:
        """{"prompt", "completion"} of each question to fine-tune on, and the questions that were left out."""


def result_of(task: Task, settings: Settings, predictions: list[Prediction]) -> Result:
    """The task's numbers, and how many examples its prompts had where it takes some."""
    numbers: dict[str, float] = {"num_fewshot": settings.num_fewshot} if task.takes_fewshot else {}
    for name, metric in task.metrics.items():
        numbers[name] = metric.aggregate([metric.value(prediction) for prediction in predictions])
    return Result(task.name, settings.split, numbers, predictions)


def check_settings(task: Task, settings: Settings) -> None:
    """UserError unless the task takes these settings."""
    if settings.split not in task.splits:
        raise UserError(f"{task.name} has no split {settings.split!r}: choose one of {', '.join(task.splits)}.")
    for name in ("limit", "num_fewshot"):
        if getattr(settings, name) < 0:
            raise UserError(f"{task.name} needs {name} to be at least 0, not {getattr(settings, name)}.")
    if settings.num_fewshot and not task.takes_fewshot:
        raise UserError(f"{task.name} takes no examples in its prompts: set num_fewshot to 0.")
