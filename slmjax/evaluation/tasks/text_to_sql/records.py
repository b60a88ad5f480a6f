"""Questions and their SQL, from the files of text2sql-data (Finegan-Dollak et al. 2018, arXiv:1806.09029).

A file is a JSON array of {"sql": [variants], "sentences": [{"text", "variables", "question-split"}]}; variables stand
as names in the text and in the SQL. The split is that of questions: the same query may be asked in other words, or
about another state, in training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.evaluation.tasks.text_to_sql.forms import compact, lower_case
from slmjax.files import local_path

SPLITS = ("train", "dev", "test")
PROMPT = "question: {question}\nsql:"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and the queries that answer it; the first is the one that the data set's authors train on."""

    text: str
    queries: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The text that the model continues; its answer is one line."""
        return PROMPT.format(question=self.text)


def read_questions(path: str | Path, split: str) -> list[Question]:
    """The questions of one split ("train", "dev", "test"), in the order of the file.

    Raises:
        UserError: no such file, split or question, or another format.
    """
    if split not in SPLITS:
        raise UserError(f"The split {split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    path = local_path(path, "The directory of the data")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        questions = [
            Question(
                _filled_in(sentence["text"], sentence.get("variables") or {}),
                tuple(_filled_in(query, sentence.get("variables") or {}) for query in entry["sql"]),
            )
            for entry in entries
            for sentence in entry["sentences"]
            if sentence["question-split"] == split
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not in the format of text2sql-data ({type(error).__name__}: {error}).") from error
    if not questions:
        raise UserError(f"{path} holds no question of the split {split!r}.")
    return questions


def _filled_in(text: str, variables: Mapping[str, str]) -> str:
    for name in sorted(variables, key=len, reverse=True):  # city_name10 before city_name1
        text = text.replace(name, variables[name])
    return text


def training_record(question: Question, same: Any) -> dict[str, str] | None:
    """{"prompt", "completion"} to learn from; None where no query of the question can be run.

    The completion is the shortest form of the first query that can be run. same: (query, form) -> whether they have
    equal results, None where the query itself fails.
    """
    for query in question.queries:
        for form in (compact(query), lower_case(query), " ".join(query.split())):
            equal = same(query, form)
            if equal is None:
                break
            if equal:
                return {"prompt": question.prompt, "completion": f" {form}"}
    return None


def write_records(records: Iterable[Mapping[str, str]], path: Path) -> int:
    """Write JSON Lines; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
