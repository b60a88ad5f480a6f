"""Text to SQL by execution: a query is right where it finds in the database what the gold query finds.

The measure is that of Finegan-Dollak et al. 2018 (arXiv:1806.09029) and Yu et al. 2018 (arXiv:1809.08887): results are
compared as multisets of rows, in their order where the gold query asks for one; columns have to stand in its order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slmjax.errors import UserError
from slmjax.evaluation.tasks.task import Item, Judge, Metric, Result, Settings, check_settings, result_of
from slmjax.evaluation.tasks.text_to_sql.database import Database, QueryError
from slmjax.evaluation.tasks.text_to_sql.forms import tokens_of
from slmjax.evaluation.tasks.text_to_sql.records import SPLITS, Question, read_questions, training_record
from slmjax.files import local_path
from slmjax.inference.generate import generate
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.sampling import GREEDY

BATCH = 16  # prompts generated at once
MAX_NEW_TOKENS = 192
DECIMALS = 6  # of numbers that are compared: sums depend on their order
Rows = list[tuple[Any, ...]]


def find_data(directory: str | Path) -> tuple[Path, Path]:
    """The questions (*.json) and the database (*.sqlite) of a data directory; UserError unless there is one of each."""
    directory = local_path(directory, "The directory of the data")
    found = [sorted(directory.glob(pattern)) for pattern in ("*.json", "*.sqlite")]
    if any(len(paths) != 1 for paths in found):
        raise UserError(
            f"{directory} must hold one .json file of text2sql-data and its .sqlite database; it has "
            f"{len(found[0])} and {len(found[1])}."
        )
    return found[0][0], found[1][0]


def training_records(directory: str | Path, split: str) -> tuple[list[dict[str, str]], list[str]]:
    """Records to fine-tune on, {"prompt", "completion"} each, and the questions that no query answers."""
    questions_path, database_path = find_data(directory)
    records, left_out = [], []
    with Database(database_path) as database:

        def same(query: str, form: str) -> bool | None:
            wanted = _result(database, query)
            if isinstance(wanted, str):
                return None
            found = _result(database, form)
            return not isinstance(found, str) and equal(found, wanted, ordered=True)

        for question in read_questions(questions_path, split):
            record = training_record(question, same)
            if record is None:
                left_out.append(question.text)
            else:
                records.append(record)
    return records, left_out


@dataclass(frozen=True)
class TextToSQL:
    """The task: execution accuracy of greedy answers.

    `execution_accuracy` is over all questions, also those of which no gold query runs (`gold_failures` counts them: no
    answer to them is right). A question may have several gold queries: the result of any is right; by the first alone,
    which the data's authors used in their experiments, it is `execution_accuracy_first_gold`. `valid_sql` is the share
    of answers that could be run. Examples in front of a question are evenly spread over the training split.

    Attributes:
        batch_size: prompts generated at once.
    """

    name: str = "text2sql"
    splits: tuple[str, ...] = SPLITS
    takes_fewshot: bool = True
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = BATCH

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Numbers of a set of answers."""
        return {
            "execution_accuracy": Metric(lambda p: p["right"]),
            "execution_accuracy_first_gold": Metric(lambda p: p["right_by_first_gold"]),
            "valid_sql": Metric(lambda p: p["error"] is None),
            "gold_failures": Metric(lambda p: p["gold_error"] is not None, sum, higher_is_better=False),
        }

    def items(self, directory: str | Path, split: str) -> list[Item]:
        """The questions of a split."""
        return [
            {"prompt": q.prompt, "completion": f" {q.queries[0]}", "text": q.text, "queries": list(q.queries)}
            for q in read_questions(find_data(directory)[0], split)
        ]

    def shots(self, directory: str | Path, count: int) -> list[Item]:
        """Evenly spread over the training split."""
        if not count:
            return []
        records: Sequence[Item] = training_records(directory, "train")[0]
        if count > len(records):
            raise UserError(
                f"The training split has {len(records)} questions, fewer than num_fewshot={count}: lower it."
            )
        return [records[i * len(records) // count] for i in range(count)]

    @contextmanager
    def judging(self, directory: str | Path) -> Iterator[Judge]:
        """A context in which answers are run beside the gold queries."""
        with Database(find_data(directory)[1]) as database:
            yield lambda item, answer: judge(
                database, Question(item["text"], tuple(item["queries"])), str(answer).strip()
            )

    def evaluate(self, lm: LanguageModel, directory: str | Path, settings: Settings) -> Result:
        """Generate a query for each question, and run it beside the gold queries."""
        check_settings(self, settings)
        items = self.items(directory, settings.split)[: settings.limit or None]
        shots = "".join(f"{s['prompt']}{s['completion']}\n\n" for s in self.shots(directory, settings.num_fewshot))
        answers: list[str] = []
        with tqdm(total=len(items), desc=self.name, unit=" questions", disable=not settings.progress) as bar:
            for first in range(0, len(items), self.batch_size):
                prompts = [shots + item["prompt"] for item in items[first : first + self.batch_size]]
                answers += generate(
                    lm, prompts, max_new_tokens=self.max_new_tokens, sampling=GREEDY, stop=list(self.stop)
                )
                bar.update(len(prompts))
        with self.judging(directory) as judge_answer:
            predictions = [judge_answer(*pair) for pair in zip(items, answers, strict=True)]
        return result_of(self, settings, predictions)

    def records(self, directory: str | Path, split: str) -> tuple[list[dict[str, str]], list[str]]:
        """Questions with the shortest form of their query; those that no query answers are left out."""
        return training_records(directory, split)


def judge(database: Database, question: Question, answer: str) -> dict[str, Any]:
    """Whether an answer is right, and why not."""
    golds = [(gold, _result(database, gold)) for gold in question.queries]
    found = _result(database, answer) if answer else "it is empty"
    met = [
        not (isinstance(found, str) or isinstance(wanted, str)) and equal(found, wanted, ordered=asks_for_order(gold))
        for gold, wanted in golds
    ]
    runs = any(not isinstance(wanted, str) for _, wanted in golds)
    return {
        "question": question.text,
        "gold": question.queries[0],
        "answer": answer,
        "right": any(met),
        "right_by_first_gold": met[0],
        "error": found if isinstance(found, str) else None,
        "gold_error": None if runs else golds[0][1],
    }


def equal(found: Rows, wanted: Rows, *, ordered: bool) -> bool:
    """Whether two results are the same rows, equally often; in the same order if that counts."""
    ours, theirs = (_rounded(rows) for rows in (found, wanted))
    return ours == theirs if ordered else Counter(ours) == Counter(theirs)


def asks_for_order(sql: str) -> bool:
    """Whether the query as a whole, and not only one within it, has an ORDER BY."""
    depth, tokens = 0, [token.lower() for token in tokens_of(sql)]
    for token, following in itertools.pairwise(tokens):
        depth += (token == "(") - (token == ")")
        if depth == 0 and token == "order" and following == "by":
            return True
    return False


def _rounded(rows: Rows) -> Rows:
    return [tuple(round(value, DECIMALS) if isinstance(value, float) else value for value in row) for row in rows]


def _result(database: Database, sql: str) -> Rows | str:
    """The rows, or why there are none."""
    try:
        return database.run(sql)
    except QueryError as error:
        return str(error)
