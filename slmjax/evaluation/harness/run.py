"""Tasks of lm-evaluation-harness on a model: load them, ask the model, and give the harness's results."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.loggers.utils import get_commit_from_path

from slmjax.console import say
from slmjax.errors import UserError
from slmjax.evaluation.harness import results as writing
from slmjax.evaluation.harness.data_folder import DataFolder
from slmjax.evaluation.harness.host_cost import keep_compiled_templates, quiet
from slmjax.evaluation.harness.index import find_entry, read_index
from slmjax.evaluation.harness.local_data import SlmjaxTaskFactory, shot_pool, told_as_mistakes
from slmjax.evaluation.harness.model import HarnessModel
from slmjax.evaluation.harness.own_tasks import OwnTask
from slmjax.evaluation.harness.presets import asked_tasks
from slmjax.evaluation.harness.resume import AnswerStore, remember
from slmjax.evaluation.harness.standard_errors import add_standard_errors
from slmjax.evaluation.tasks.code_execution.executor import install
from slmjax.evaluation.tasks.needle.task import NeedleTask
from slmjax.files import local_path
from slmjax.inference.language_model import LanguageModel

SEED = 1234  # the harness's, of the shots


@dataclass(frozen=True)
class LoadedTask:
    """The tasks behind one name: a task, a group with its members, or the tasks of a tag.

    Attributes:
        tasks, groups: the harness's objects by name.
        notes: what is evaluated otherwise than upstream, a sentence each.
    """

    name: str
    tasks: dict[str, Task]
    groups: dict[str, Group]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Selection:
    """Loaded tasks, and how many items of each are asked (0: all)."""

    loaded: list[LoadedTask]
    limit: int = 0


def load_tasks(
    names: Sequence[str],
    *,
    data_dir: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int = 0,
    include_path: Sequence[str] = (),
    allow_code: bool = False,
) -> Selection:
    """The tasks of these names: tasks, groups, tags and presets, or paths of YAML files.

    Args:
        names: in order; a preset brings its tasks, shots and limit.
        data_dir: directory of the data files; None: the hub's data sets, as the harness loads them.
        num_fewshot: examples in each prompt; None: a preset's, else the task's own. Tasks that fix them at 0 keep it.
        limit: items of each task at most; 0: the preset's limit, else all.
        include_path: directories of further tasks.
        allow_code: whether tasks that run what the model writes may be built.

    Raises:
        UserError: an unknown name, missing or unfit data, more shots than there are examples.
    """
    asked, preset_limit = asked_tasks(list(names))
    folder = None
    if data_dir is not None:
        directory = local_path(data_dir, "--data-dir")
        if not directory.is_dir():
            raise UserError(
                f"--data-dir {directory} is not a directory: give the one that holds the tasks' data files."
            )
        folder = DataFolder(directory)
    install(allow_code)
    index = read_index(include_path)
    entries = [find_entry(one.name, index) for one in asked]
    keep_compiled_templates()
    loaded: list[LoadedTask] = []
    with quiet():
        for one, entry in zip(asked, entries, strict=True):
            shots = one.num_fewshot if num_fewshot is None else num_fewshot
            factory = SlmjaxTaskFactory(folder, shots)
            with told_as_mistakes(one.name, "", local=True):
                built = factory.build(entry, registry=index)
            loaded.append(_flat(one.name, built, factory.notes))
    _refuse_repeated(loaded)
    for each in loaded:
        for task in each.tasks.values():
            shot_pool(task, task.get_config("num_fewshot") or 0)
    return Selection(loaded, limit or preset_limit)


def _flat(name: str, built: Any, notes: list[str]) -> LoadedTask:
    if isinstance(built, Group):
        groups = {group.name: group for group in (built, *built.get_all_groups())}
        return LoadedTask(name, {task.task_name: task for task in built.get_all_tasks()}, groups, notes)
    tasks = built if isinstance(built, list) else [built]
    return LoadedTask(name, {task.task_name: task for task in tasks}, {}, notes)


def _refuse_repeated(loaded: Sequence[LoadedTask]) -> None:
    owner: dict[str, str] = {}
    for each in loaded:
        for task in each.tasks:
            if owner.setdefault(task, each.name) != each.name:
                raise UserError(f"The task {task} is in both {owner[task]} and {each.name}: name only one of them.")


def evaluate_harness(
    lm: LanguageModel | LM,
    tasks: Sequence[str] | Selection,
    *,
    data_dir: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int = 0,
    include_path: Sequence[str] = (),
    apply_chat_template: bool | str = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool | None = None,
    seed: int = SEED,
    allow_code: bool = False,
    needle_lengths: Sequence[int] = (),
    answers: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    tell: Callable[[writing.Results], object] | None = None,
) -> writing.Results:
    """The results of a model on tasks, in the form of lm-evaluation-harness, samples included.

    Args:
        lm: a model of slmjax, or one of the harness's own classes.
        tasks: names, or what `load_tasks` made of them (which then has the data, shots and limit).
        data_dir, num_fewshot, limit, include_path: see `load_tasks`.
        apply_chat_template: render prompts with the model's chat template, or with the one of a name.
        system_instruction: text before every prompt, or the system message of a chat.
        fewshot_as_multiturn: whether shots are turns of a chat; None: with a chat template.
        seed: of the drawing of shots.
        allow_code: whether tasks that run what the model writes may be evaluated.
        needle_lengths: tokens of the prompts of needle tasks; none: powers of two up to the model's context.
        answers: file in which answers are kept as they are computed.
        resume: take from that file what is there.
        progress: show a bar on stderr.
        tell: called with all results so far whenever a named task, group or tag is done.

    Raises:
        UserError: what `load_tasks` refuses, a model without a tokenizer, no chat template, a log-likelihood that is
            not finite.
    """
    started, clock = time.time(), time.perf_counter()
    model = lm if isinstance(lm, LM) else HarnessModel(lm)
    template = model.chat_template(apply_chat_template) if apply_chat_template else None  # type: ignore[arg-type]
    if not isinstance(tasks, Selection):
        tasks = load_tasks(
            tasks,
            data_dir=data_dir,
            num_fewshot=num_fewshot,
            limit=limit,
            include_path=include_path,
            allow_code=allow_code,
        )
    refuse_code(tasks, allow_code)
    if system_instruction and not apply_chat_template and not system_instruction[-1].isspace():
        system_instruction += "\n\n"  # the harness would put the question right behind it
    multiturn = bool(apply_chat_template) if fewshot_as_multiturn is None else fewshot_as_multiturn
    _fit_needles(tasks, model, needle_lengths, system_instruction, chat=bool(apply_chat_template))
    store = None if answers is None else AnswerStore(answers, _identity(model), reuse=resume)
    whole: writing.Results = {}
    settings = {
        "limit": tasks.limit or None,
        "bootstrap_iters": 0,
        "system_instruction": system_instruction,
        "apply_chat_template": apply_chat_template,
        "fewshot_as_multiturn": multiturn,
        "confirm_run_unsafe_code": allow_code,
    }
    facts = {
        **writing.model_facts(model, _name(lm)),
        **writing.environment_facts(),
        **writing.text_facts("system_instruction", system_instruction),
        **writing.text_facts("chat_template", template),
        "fewshot_as_multiturn": multiturn,
        "git_hash": get_commit_from_path(Path.cwd()),
        "date": started,
    }
    notes = [note for each in tasks.loaded for note in each.notes]
    try:
        for each in tasks.loaded:
            versions = {name: task.VERSION for name, task in each.tasks.items()}
            with quiet(), remember(model, store, versions, progress=progress):
                part = _evaluate(model, each, settings, seed)
            writing.merge(whole, part)
            whole |= {name: task.told() for name, task in each.tasks.items() if isinstance(task, OwnTask)}
            whole |= facts | {"total_evaluation_time_seconds": str(time.perf_counter() - clock)}
            whole["config"] = _config(model, lm, tasks.limit, seed, notes, store)
            if tell is not None:
                tell(whole)
    except (UserError, KeyboardInterrupt):
        if store is not None:
            say("What was computed is kept: the same command with --resume goes on from there.")
        raise
    finally:
        if store is not None:
            store.close()
    return whole


def _evaluate(model: LM, loaded: LoadedTask, settings: dict[str, Any], seed: int) -> writing.Results:
    """The harness's results of what one name stands for, with standard errors and hashes."""
    random.seed(0)  # the harness's seeds, set anew so that no task depends on those before it
    np.random.seed(seed)
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed)
    manager = {"tasks": loaded.tasks, "groups": loaded.groups}
    results: writing.Results = lm_eval.evaluator.evaluate(lm=model, task_dict=manager, **settings)  # type: ignore
    add_standard_errors(results, loaded.tasks, loaded.groups)
    return results | {"task_hashes": writing.task_hashes(results["samples"])}


def _fit_needles(tasks: Selection, model: LM, lengths: Sequence[int], system: str | None, *, chat: bool) -> None:
    """Make the prompts of needle tasks, which a model's tokenizer and context decide."""
    needles = [task for each in tasks.loaded for task in each.tasks.values() if isinstance(task, NeedleTask)]
    if lengths and not needles:
        raise UserError("--lengths N,... is of needle tasks: add needle to --tasks, or leave it out.")
    if not needles:
        return
    around = system or ""  # what stands in every prompt beside the task's own text
    if chat:
        messages = [{"role": "system", "content": system}] if system else []
        around = model.apply_chat_template([*messages, {"role": "user", "content": "?"}])
    margin = len(model.tok_encode(around)) if around else 0  # type: ignore[attr-defined]
    with quiet():
        for task in needles:
            task.fit_to(model, lengths=lengths, margin=margin)  # type: ignore[arg-type]


def refuse_code(tasks: Selection, allowed: bool) -> None:
    """UserError where a task runs what the model writes and that is not allowed, or asks about more than text."""
    for each in tasks.loaded:
        for name, task in each.tasks.items():
            if getattr(task, "UNSAFE_CODE", False) and not allowed:
                raise UserError(f"{name} runs programs that the model writes: allow it by --allow-code.")
            if getattr(task, "MULTIMODAL", False):
                raise UserError(f"{name} asks about images or sound, which no model here takes: choose another task.")


def _config(
    model: LM, lm: LanguageModel | LM, limit: int, seed: int, notes: list[str], store: AnswerStore | None
) -> dict[str, Any]:
    """The harness's section `config`: the model, and how it was asked."""
    told = model.get_model_info() if hasattr(model, "get_model_info") else {}
    name = _name(lm)
    return {
        "model": "slmjax" if isinstance(lm, LanguageModel) else type(lm).__name__,
        "model_args": {"path": name},
        **told,
        "batch_size": None,
        "batch_sizes": [],
        "device": None,
        "use_cache": None,
        "limit": limit or None,
        "bootstrap_iters": 0,
        "gen_kwargs": None,
        "random_seed": 0,
        "numpy_seed": seed,
        "torch_seed": None,
        "fewshot_seed": seed,
        "answers_reused": 0 if store is None else store.reused,
        "notes": notes,
    }


def _identity(model: LM) -> dict[str, Any]:
    """What the answers of a model depend on, beside what it is asked."""
    told = dict(model.get_model_info()) if hasattr(model, "get_model_info") else {"model": type(model).__name__}
    for changing in ("truncated_requests", "mesh"):
        told.pop(changing, None)
    stops = model.lm.stop_ids if isinstance(model, HarnessModel) else ()
    return told | {"max_length": getattr(model, "max_length", None), "stop_ids": stops, "lm_eval": lm_eval.__version__}


def _name(lm: LanguageModel | LM) -> str:
    return (lm.path if isinstance(lm, LanguageModel) else "") or type(lm).__name__
