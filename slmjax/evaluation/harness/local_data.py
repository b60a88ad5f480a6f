"""The harness's tasks with their data read from local files: the official YAML stays, only its data set is ours."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry

from slmjax.console import warn
from slmjax.errors import UserError, one_line
from slmjax.evaluation.harness.data_folder import DataFolder, Record, read_dataset


class SlmjaxTaskFactory(TaskFactory):
    """The harness's factory, building tasks that read `data` (None: the hub's data sets) and have so many shots.

    Tasks that are classes of their own load their data themselves; one that takes `data_dir` is given the directory.

    Attributes:
        notes: what an evaluation will do otherwise than upstream, a sentence each.
    """

    def __init__(self, data: DataFolder | None, num_fewshot: int | None):
        super().__init__()
        self._data, self._num_fewshot = data, num_fewshot
        self.notes: list[str] = []

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        config = self._load_full_config(entry, overrides)
        for key in ("tag", "group", "task_list"):
            config.pop(key, None)
        if config.get("num_fewshot") != 0:  # upstream's rule: a task that says 0 is always asked without examples
            config["num_fewshot"] = config.get("num_fewshot") if self._num_fewshot is None else self._num_fewshot
        config["num_fewshot"] = config["num_fewshot"] or 0
        with told_as_mistakes(config["task"], config.get("dataset_path") or "", local=self._data is not None):
            if "class" in config:
                return self._build_python_task(config)
            task = HarnessTask(config, self._data)
        self.notes += task.notes
        return task

    def _build_python_task(self, config: dict[str, Any]) -> Task:
        kind = config["class"]
        known = inspect.signature(kind.__init__).parameters
        given: dict[str, Any] = {"config": config} if "config" in known else {}
        if "data_dir" in known and self._data is not None:
            given["data_dir"] = str(self._data.directory)
        task = kind(**given)
        task.config.task = config["task"]
        task.config.num_fewshot = config["num_fewshot"]
        return task


class HarnessTask(ConfigurableTask):
    """A task of the harness as its YAML has it, but for where its data come from and what is computed twice.

    Without shots their pool is not read. Where the folder lacks the split that upstream evaluates, the validation split
    is evaluated; where it lacks that of the shots, they are drawn from the evaluated one, never the item itself.
    """

    def __init__(self, config: dict[str, Any], data: DataFolder | None):
        self.notes: list[str] = []
        self._data = data
        self._shots = config["num_fewshot"]
        if config.get("process_docs") is not None:
            config["process_docs"] = _once(config["process_docs"])
        if data is not None and config.get("custom_dataset") is None:
            self._choose_splits(config)
        super().__init__(config=config)

    def build_all_requests(self, **kwargs: Any) -> None:
        """Make the requests of all items; UserError where one of them lacks what the task reads."""
        with told_as_mistakes(self.config.task, self.config.dataset_path or "", local=True):
            super().build_all_requests(**kwargs)

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """The metrics of an item; UserError where it lacks what they read."""
        with told_as_mistakes(self.config.task, self.config.dataset_path or "", local=True):
            return super().process_results(doc, results)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Read the splits when they are first asked for, or load the data set as the harness does."""
        if self._data is None or self.config.custom_dataset is not None:
            super().download(dataset_kwargs, **kwargs)
        else:
            self.dataset = _Splits(self._read)

    def fewshot_docs(self) -> Any:
        """The documents to draw shots from; none where there are no shots."""
        return super().fewshot_docs() if self._shots else None

    @property
    def eval_docs(self) -> Any:
        """The documents that are evaluated."""
        documents = super().eval_docs
        if len(documents) == 0:
            raise UserError(f"{self.config.task} has nothing to evaluate: its data leave no item after filtering.")
        return documents

    def _choose_splits(self, config: dict[str, Any]) -> None:
        """Set the splits in a configuration to those that the folder has."""
        evaluated = config.get("test_split") or config.get("validation_split")
        if evaluated is None:
            return
        if not self._files(config, evaluated):
            other = config.get("validation_split")
            if other in (None, evaluated) or not self._files(config, other):
                raise UserError(missing_split(config, evaluated, self._data))
            self._note(config, f"its {other} split is evaluated and not {evaluated}, which the data directory lacks")
            evaluated = config["test_split"] = other
        pool = config.get("fewshot_split") or (config.get("fewshot_config") or {}).get("split")
        if not self._shots or (pool is None and (config.get("fewshot_config") or {}).get("samples") is not None):
            return
        pool = pool or config.get("training_split") or config.get("validation_split") or evaluated
        if not self._files(config, pool):
            self._note(
                config,
                f"its shots are drawn from the evaluated split and not from {pool}, which the data directory lacks",
            )
            config["test_split"] = config["fewshot_split"] = evaluated
            if config.get("training_split") == pool:
                config["training_split"] = None
            if (config.get("fewshot_config") or {}).get("split") is not None:
                config["fewshot_config"] = config["fewshot_config"] | {"split": evaluated}

    def _note(self, config: dict[str, Any], sentence: str) -> None:
        self.notes.append(f"{config['task']}: {sentence}.")
        warn(self.notes[-1])

    def _files(self, config: dict[str, Any], split: str) -> list[Any]:
        assert self._data is not None
        dataset, name = config.get("dataset_path") or "", config.get("dataset_name") or ""
        return self._data.find(config["task"], dataset, name, split)

    def _read(self, split: str) -> Any:
        config = {name: self.get_config(name) for name in ("task", "dataset_path", "dataset_name")}
        paths = self._files(config, split)
        if not paths:
            raise UserError(missing_split(config, split, self._data))
        return read_dataset(paths, FORMS.get((config["dataset_path"] or "").rpartition("/")[2], lambda record: record))


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, run once on each data set: the harness asks for its documents at every look."""
    done: dict[int, tuple[Any, Any]] = {}

    @functools.wraps(process)
    def processed(documents: Any) -> Any:
        if id(documents) not in done:
            done[id(documents)] = documents, process(documents)  # which stays alive, and so keeps its id
        return done[id(documents)][1]

    return processed


class _Splits(dict[str, Any]):
    """The splits of a data set, each read when it is first asked for."""

    def __init__(self, read: Callable[[str], Any]):
        super().__init__()
        self._read = read

    def __missing__(self, split: str) -> Any:
        self[split] = self._read(split)
        return self[split]


def _lambada(record: Record) -> Record:
    if "text" not in record and {"context", "continuation"} <= record.keys():
        return {"text": f"{record['context']} {record['continuation']}"}
    return record


def _boolq(record: Record) -> Record:
    """google/boolq has a truth value, super_glue a label."""
    if "label" not in record and isinstance(record.get("answer"), bool):
        return record | {"label": int(record["answer"])}
    return record


# Data sets that are also had in another form than the tasks': what turns a record of it into one of theirs.
FORMS: dict[str, Callable[[Record], Record]] = {"lambada_openai": _lambada, "super_glue": _boolq}


def missing_split(config: dict[str, Any], split: str, data: DataFolder | None) -> str:
    """The sentence about a split that a folder lacks: which file, in which form, and where it is had."""
    task, dataset, name = config["task"], config.get("dataset_path") or "", config.get("dataset_name")
    place = None if data is None else data.directory
    fields = f", with the fields of {dataset}{f' ({name})' if name else ''} on the Hugging Face hub" if dataset else ""
    fetched = f"; hf download --repo-type dataset {dataset} --local-dir {place}/{dataset.rpartition('/')[2]} fetches it"
    return (
        f"{task} needs its split {split}, which {place} lacks: put {task}.{split}.jsonl there (or .json, .parquet, "
        f".csv, also .gz){fields}{fetched if '/' in dataset else ''}."
    )


@contextmanager
def told_as_mistakes(task: str, dataset: str, *, local: bool) -> Iterator[None]:
    """A context in which what the harness raises about a task's data becomes a UserError that names the task."""
    dataset = dataset or "its data set"
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{task} needs the package {error.name}: pip install {error.name}.") from error
    except Exception as error:
        if "punkt_tab" in str(error):
            raise UserError(
                f"{task} needs NLTK's data of English sentences: python -m nltk.downloader punkt_tab fetches them."
            ) from error
        if (missing := _missing_field(error)) is not None:
            raise UserError(
                f"{task} reads the field {missing!r}, which the data lack: give them the fields of {dataset}."
            ) from error
        if local or isinstance(error, AssertionError | AttributeError):
            raise UserError(
                f"{task} cannot be prepared ({type(error).__name__}: {one_line(error)}): check that the data are in "
                f"the form of {dataset}."
            ) from error
        raise UserError(
            f"{task} needs {dataset}, which cannot be loaded ({one_line(error)}): check the network, or give its files "
            "with --data-dir DIR."
        ) from error


def _missing_field(error: Exception) -> str | None:
    """The field that a template or a function did not find in a document."""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return error.args[0]
    if isinstance(error, jinja2.UndefinedError):
        words = str(error.message).split("'")
        return words[-2] if len(words) >= 3 else str(error.message)
    return None


def shot_pool(task: Task, count: int) -> None:
    """UserError where a task cannot have so many examples in front of its items."""
    sampler = getattr(task, "sampler", None)
    if not count or sampler is None:
        return
    same_split = task.fewshot_cfg.split == task.config.test_split  # type: ignore[attr-defined]
    held = len(sampler.fewshot_docs())
    if held < count + same_split:
        others = " beside the item itself" if same_split else ""
        raise UserError(
            f"{task.task_name} has {held - same_split} examples to choose its shots from{others}, fewer than "
            f"{count}: lower --num-fewshot or --shots."
        )
