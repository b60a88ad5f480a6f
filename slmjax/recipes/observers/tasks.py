"""Scores of tasks as the network learns: those of `slmjax evaluate --tasks`, at evaluations of the run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.evaluation.harness import require_harness
from slmjax.inference.language_model import LanguageModel
from slmjax.recipes.config import RunConfig
from slmjax.recipes.language_model import ModelProgram
from slmjax.recipes.observers.plots import TASK, plot_tasks
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.training.processes import is_primary
from slmjax.training.recipe import End, Evaluation, Observer, Watching
from slmjax.training.reporting.metrics import FILE_NAME as METRICS

PICTURE = "tasks.png"
_KEYS = {  # of a config, where a command has options
    "--data-dir": "training.tasks.data_dir",
    "--num-fewshot": "training.tasks.num_fewshot",
    "--allow-code (of the harness's own command line: --confirm_run_unsafe_code)": "training.tasks.allow_code=True",
    "--allow-code": "training.tasks.allow_code=True",
    "--tasks": "training.tasks.names",
}


@dataclass(frozen=True)
class WatchedTasks:
    """Tasks with their data.

    Attributes:
        selection: of the harness.
        allow_code: whether they may run programs.
        falling: metrics of which less is better.
    """

    selection: Any
    allow_code: bool
    falling: frozenset[str]


def open_tasks(config: RunConfig) -> WatchedTasks | None:
    """The tasks of `training.tasks` and `forgetting.tasks`, None where there are none.

    Raises:
        UserError: lm-evaluation-harness is not installed, an unknown name, data that are missing or do not fit.
    """
    asked = config.training.tasks
    names = tuple(dict.fromkeys((*asked.names, *config.forgetting.tasks)))
    if not names:
        return None
    require_harness()
    from slmjax.evaluation.harness.run import load_tasks, refuse_code

    try:
        selection = load_tasks(
            names,
            data_dir=asked.data_dir or None,
            num_fewshot=None if asked.num_fewshot < 0 else asked.num_fewshot,
            limit=asked.limit,
            allow_code=asked.allow_code,
        )
        refuse_code(selection, asked.allow_code)
    except UserError as error:
        message = str(error)
        for option, key in _KEYS.items():
            message = message.replace(option, key)
        raise UserError(message) from error
    tasks = [task for loaded in selection.loaded for task in loaded.tasks.values()]
    falling = {metric for task in tasks for metric, rising in task.higher_is_better().items() if not rising}
    return WatchedTasks(selection, asked.allow_code, frozenset(falling))


def task_scores(
    watched: WatchedTasks | None,
    lm: ModelProgram,
    tokenizer: Tokenizer,
    workdir: Path,
    stop_ids: Sequence[int] = (),
    generation: Mapping[str, Any] | None = None,
) -> list[Observer]:
    """The observer of tasks, if there are any."""
    if watched is None:
        return []
    return [TaskScores(watched, lm, tokenizer, workdir, stop_ids, generation or {})]


class TaskScores(Watching):
    """Scores the network, by `task/NAME/METRIC` and its standard error, and draws WORKDIR/tasks.png in the end.

    The parameters are those of the training state (the averaged ones, if there are any), where they lie.
    """

    name = "task_scores"

    def __init__(
        self,
        watched: WatchedTasks,
        lm: ModelProgram,
        tokenizer: Tokenizer,
        workdir: Path,
        stop_ids: Sequence[int],
        generation: Mapping[str, Any],
    ):
        """`stop_ids`, `generation`: of the base, as the run's model will have them."""
        self._watched, self._lm, self._tokenizer, self._workdir = watched, lm, tokenizer, workdir
        self._stop_ids, self._generation = tuple(stop_ids), generation

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Every score of every task; before the first step, of the network as it began. {} where none is due."""
        training, step = self._lm.config.training, evaluation.step
        every = training.eval_every * training.tasks.every
        if not (evaluation.final or (every and step % every == 0) or step == 0):
            return {}
        from slmjax.evaluation.harness.run import evaluate_harness

        with _global_generators_kept():
            results = evaluate_harness(
                self._model(evaluation), self._watched.selection, allow_code=self._watched.allow_code, progress=False
            )
        return scores_of(results)

    def finish(self, end: End) -> None:
        """Draw what was logged."""
        if is_primary() and end.step and (self._workdir / METRICS).is_file():
            plot_tasks(self._workdir / METRICS, self._workdir / PICTURE, title=self._workdir.resolve().name)

    def _model(self, evaluation: Evaluation) -> Any:
        from slmjax.evaluation.harness.model import HarnessModel

        state, method = evaluation.state, self._lm.method
        if evaluation.step == 0 and method.changes_at_start:
            method = method.without_added()
        params = state.params if state.ema is None else state.ema
        variables = method.variables(params, state.frozen)
        lm = LanguageModel(
            config=self._lm.config.model,
            params=variables["params"],
            peft=variables.get("peft", {}),
            options=method.options,
            tokenizer=self._tokenizer,
            stop_ids=self._stop_ids,
            generation=self._generation,
        )
        model = HarnessModel(lm)
        model.get_model_info = dict  # type: ignore[method-assign]  # a fingerprint of all parameters, each time
        return model


def scores_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the harness's results by `task/NAME/METRIC`, with the filter behind it where there is one."""
    found: dict[str, float] = {}
    for task, scores in results["results"].items():
        for key, value in scores.items():
            metric, comma, kind = key.partition(",")
            if comma and isinstance(value, int | float):
                found[f"{TASK}{task}/{metric}{'' if kind == 'none' else comma + kind}"] = float(value)
    return found


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """A context whose seeding of the global generators of Python and NumPy is undone."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
