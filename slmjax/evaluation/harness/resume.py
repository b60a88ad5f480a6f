"""Answers kept on disk as they are computed, so that an evaluation that was stopped goes on where it was.

One SQLite file with a row an answer. Its key is a hash of the model, the task and its version, and what was asked;
values are JSON (the harness's own cache unpickles what it finds, and knows no model).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from slmjax.errors import UserError, one_line

METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_COMMIT_EVERY = 1.0  # seconds; what a killed run loses at most


class AnswerStore:
    """The answers in a file, which is made where there is none. `identity` is what answers depend on beside the task.

    Raises:
        UserError: the file is no store of answers, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, reuse: bool):
        self._path, self._identity, self._reuse = path, json.dumps(identity, sort_keys=True, default=str), reuse
        self._committed = time.monotonic()
        self.reused = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30)
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path} cannot keep the answers ({one_line(error)}): move it away.") from error

    def key(self, method: str, task: str, version: Any, arguments: Any) -> str:
        """The key of what is asked."""
        asked = json.dumps([self._identity, task, str(version), method, arguments], default=str)
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, method: str, key: str) -> Any:
        """The answer that is kept, None where there is none or it is not to be used again."""
        if not self._reuse:
            return None
        row = self._run("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        answer = None if row is None else _read(method, row[0])
        self.reused += answer is not None
        return answer

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer."""
        self._run(
            "INSERT OR REPLACE INTO answers VALUES (?, ?)",
            (key, json.dumps(answer, default=lambda value: value.item())),
        )
        if time.monotonic() - self._committed > _COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Write what was kept to the disk."""
        try:
            self._database.commit()
        except sqlite3.Error as error:
            raise UserError(f"{self._path} cannot keep the answers ({one_line(error)}): free some space.") from error
        self._committed = time.monotonic()

    def close(self) -> None:
        """Write and close the file."""
        self.commit()
        self._database.close()

    def _run(self, statement: str, values: tuple[str, ...]) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise UserError(f"{self._path} is not a store of answers ({one_line(error)}): move it away.") from error


def _read(method: str, text: str) -> Any:
    """An answer of the method's type; None for anything else that stands in the file."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        answer = json.loads(text)
        if method == "loglikelihood":
            total, greedy = answer
            return (total, greedy) if isinstance(total, float) and isinstance(greedy, bool) else None
        wanted = float if method == "loglikelihood_rolling" else str
        return answer if isinstance(answer, wanted) else None
    return None


class _Hook:
    """The harness's cache hook: an LM tells it each answer as soon as it is known."""

    def __init__(self, store: AnswerStore):
        self._store = store
        self.keys: dict[str, list[str]] = {}

    def add_partial(self, method: str, arguments: Any, answer: Any) -> None:
        """Keep the answer to a request of the call that is running."""
        for key in self.keys.pop(_asked(method, arguments), ()):
            self._store.put(key, answer)


@contextmanager
def remember(
    model: LM, store: AnswerStore | None, versions: Mapping[str, Any], *, progress: bool = True
) -> Iterator[None]:
    """A context in which what `model` is asked is looked up in the store first, and kept there as it is answered.

    versions: of the tasks by name.
    """
    before = model.cache_hook
    hook = None if store is None else _Hook(store)
    for method in METHODS:
        ask = functools.partial(getattr(model, method), disable_tqdm=not progress)
        setattr(model, method, functools.partial(_answer, ask, method, store, hook, versions))
    if hook is not None:
        model.cache_hook = hook  # type: ignore[assignment]
    try:
        yield
    finally:
        for method in METHODS:
            delattr(model, method)
        model.cache_hook = before
        if store is not None:
            store.commit()


def _answer(
    ask: Callable[[Sequence[Instance]], list[Any]],
    method: str,
    store: AnswerStore | None,
    hook: _Hook | None,
    versions: Mapping[str, Any],
    requests: Sequence[Instance],
) -> list[Any]:
    """The answers to requests in order, of which those that are kept are not asked again."""
    if store is None or hook is None:
        return ask(requests)
    answers: list[Any] = [None] * len(requests)
    keys: list[str | None] = [None] * len(requests)  # None for what is drawn at random
    for number, request in enumerate(requests):
        if not _is_sampled(method, request.args):
            name = request.task_name or ""
            keys[number] = key = store.key(method, name, versions.get(name), request.args)
            answers[number] = store.get(method, key)
    missing = [number for number, answer in enumerate(answers) if answer is None]
    for number in missing:
        if (kept := keys[number]) is not None:
            hook.keys.setdefault(_asked(method, requests[number].args), []).append(kept)
    found = ask([requests[number] for number in missing]) if missing else []
    for number, answer in zip(missing, found, strict=True):
        answers[number] = answer
        hook.add_partial(method, requests[number].args, answer)  # of a model that did not tell it
    hook.keys.clear()
    store.commit()
    return answers


def _asked(method: str, arguments: Any) -> str:
    return json.dumps([method, arguments], default=str)


def _is_sampled(method: str, arguments: Any) -> bool:
    if method != "generate_until":
        return False
    settings = arguments[1]
    return bool(settings.get("do_sample")) or float(settings.get("temperature") or 0) > 0
