"""Tasks of our own as tasks of lm-evaluation-harness: asked, counted and written like all others.

A task's data lie in the directory of its name within --data-dir, or in that itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._index import Entry, Kind

from slmjax.errors import UserError
from slmjax.evaluation.tasks.registry import TASKS
from slmjax.evaluation.tasks.task import Judge, Prediction, Settings, check_settings, mean, result_of

_SPLIT = "test"
_VERSION = 1.0


class OwnTask(ConfigurableTask):
    """One of `TASKS`, by the name in a configuration.

    Raises:
        UserError: no directory, or one with other data; examples for a task that takes none.
    """

    def __init__(self, config: dict[str, Any], data_dir: str = ""):
        name = config["task"]
        self._own = TASKS[name]
        if not data_dir:
            raise UserError(f"The task {name} reads local data: give their directory by --data-dir DIR.")
        self._directory = Path(data_dir) / name if (Path(data_dir) / name).is_dir() else Path(data_dir)
        self._settings = Settings(_SPLIT, num_fewshot=config.get("num_fewshot") or 0)
        check_settings(self._own, self._settings)
        self._open = ExitStack()
        self._judge: Judge | None = None
        self.predictions: list[Prediction] = []
        super().__init__(config={"task": name, "metadata": {"version": _VERSION}, **self._form()})

    def _form(self) -> dict[str, Any]:
        """The configuration of the harness that asks what the task asks."""
        own, shots = self._own, self._own.shots(self._directory, self._settings.num_fewshot)
        answers: dict[str, Any] = (
            {"output_type": "multiple_choice", "doc_to_choice": list(own.choices), "doc_to_target": _index(own.choices)}
            if own.choices
            else {
                "output_type": "generate_until",
                "doc_to_target": "completion",
                "target_delimiter": "",
                "generation_kwargs": {
                    "until": list(own.stop),
                    "max_gen_toks": own.max_new_tokens,
                    "do_sample": False,
                },
            }
        )
        return answers | {
            "custom_dataset": lambda **_: self._items(),  # functions: the harness copies methods with their objects
            "test_split": _SPLIT,
            "doc_to_text": "prompt",
            "num_fewshot": self._settings.num_fewshot,
            "fewshot_config": {"sampler": "first_n", "samples": shots},
            "process_results": lambda item, results: self._process(item, results),
            "metric_list": [
                {
                    "metric": name,
                    "aggregation": "mean" if metric.aggregate is mean else metric.aggregate,
                    "higher_is_better": metric.higher_is_better,
                }
                for name, metric in own.metrics.items()
            ],
        }

    def _items(self) -> dict[str, datasets.Dataset]:
        return {_SPLIT: datasets.Dataset.from_list(self._own.items(self._directory, _SPLIT))}

    def build_all_requests(self, **kwargs: Any) -> None:
        """Make the requests of all items; what was answered before is forgotten."""
        self.predictions = []
        super().build_all_requests(**kwargs)

    def _process(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """The metrics' values of one answer."""
        if self._judge is None:
            self._judge = self._open.enter_context(self._own.judging(self._directory))
        answer = [total for total, _ in results] if self._own.choices else results[0]
        prediction = self._judge(doc, answer)
        self.predictions.append(prediction)
        return {name: metric.value(prediction) for name, metric in self._own.metrics.items()}

    def told(self) -> dict[str, Any]:
        """The numbers and predictions under the names that the task itself gives them; ends the judging."""
        self._open.close()
        self._judge = None
        return result_of(self._own, self._settings, self.predictions).to_dict()


def _index(choices: tuple[str, ...]) -> Any:
    return lambda item: choices.index(item["completion"].strip())


def own_entries() -> dict[str, Entry]:
    """The harness's index entries of our own tasks."""
    return {name: Entry(name, Kind.PY_TASK, None, cfg={"task": name, "class": OwnTask}) for name in TASKS}
