"""Needles in a haystack as tasks of lm-evaluation-harness: `needle_single`, `needle_multikey` and the others.

The score of an item is the share of its numbers that the answer contains, under a metric named by the item's length;
as in RULER the other lengths' metrics are -1 for it, and left out of their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._index import Entry, Kind

from slmjax.data.config import SourceConfig
from slmjax.data.sources import read_documents
from slmjax.errors import UserError
from slmjax.evaluation.tasks.needle.items import (
    KINDS,
    MAX_NEW_TOKENS,
    Haystack,
    default_lengths,
    found_strings,
    make_items,
)

STANDARD_TEXT = "python:stdlib?max_megabytes=4"  # what every Python installation carries
TAG = "needle"
OF_ANOTHER_LENGTH = -1.0  # a metric's value for items that are not of its length
_VERSION = 1.0
_CHARACTERS_A_TOKEN = 16  # at most, of a text that is read: no tokenizer packs more into one
_SPLIT = "test"


class Model(Protocol):
    """The part of the harness's models that needle tasks use."""

    @property
    def max_length(self) -> int: ...
    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]: ...


class NeedleTask(ConfigurableTask):
    """One of `items.KINDS`, by the name in a configuration. It has its items when it has been fitted to a model.

    config: {"task": NAME}. data_dir: directory with a text of one's own, `*.txt` in it or in its directory `needle`;
    else the haystack is Python's standard library.
    """

    def __init__(self, config: dict[str, Any], data_dir: str = ""):
        self._name, self._source = config["task"], haystack_source(data_dir)
        self._fitted = False
        nothing = {"input": "", "gen_prefix": "", "outputs": ["0"], "depths": [0], "query": "", "max_length": 0}
        super().__init__(config=_form(self._name, [nothing | {"length": 0}], [0]))

    def fit_to(self, model: Model, *, lengths: Sequence[int] = (), margin: int = 0) -> None:
        """Make the items, of these lengths in tokens (none: up to the model's context).

        margin: tokens that a chat template puts around each prompt.

        Raises:
            UserError: a length beyond the context, too short, or longer than the haystack.
        """
        lengths = list(dict.fromkeys(lengths)) or default_lengths(model.max_length)
        if max(lengths) > model.max_length:
            raise UserError(
                f"{self._name} cannot have prompts of {max(lengths):,} tokens: the model's context is "
                f"{model.max_length:,}, give shorter --lengths."
            )
        text = haystack_text(self._source, _CHARACTERS_A_TOKEN * max(lengths))
        haystack = Haystack(text, lambda part: len(model.tok_encode(part, add_special_tokens=False)))
        margin += len(model.tok_encode("a")) - len(model.tok_encode("a", add_special_tokens=False))
        items = make_items(self._name, haystack, lengths, margin=margin)
        super().__init__(config=_form(self._name, items, lengths))
        self._fitted = True

    def build_all_requests(self, **kwargs: Any) -> None:
        """Make the requests of all items."""
        if not self._fitted:
            raise UserError(f"{self._name} has its items for one model alone: evaluate it by slmjax evaluate --tasks.")
        super().build_all_requests(**kwargs)


def needle_entries() -> dict[str, Entry]:
    """The harness's index entries of the tasks, and of the tag `needle` for all of them."""
    tasks = {
        name: Entry(name, Kind.PY_TASK, None, cfg={"task": name, "class": NeedleTask, "num_fewshot": 0}, tags={TAG})
        for name in KINDS
    }
    return {**tasks, TAG: Entry(TAG, Kind.TAG, None, tags=set(KINDS))}


def haystack_source(data_dir: str | Path) -> SourceConfig:
    """The user's text files, else Python's standard library."""
    if data_dir:
        for directory in (Path(data_dir) / "needle", Path(data_dir)):
            if next(directory.glob("*.txt"), None) is not None:
                return SourceConfig(str(directory / "*.txt"), format="text")
    return SourceConfig(STANDARD_TEXT)


def haystack_text(source: SourceConfig, characters: int) -> str:
    """The documents of a source one after the other, as far as they are needed."""
    parts: list[str] = []
    left = characters
    for text in read_documents(source):
        parts.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return "\n".join(parts)


def _form(name: str, items: list[dict[str, Any]], lengths: Sequence[int]) -> dict[str, Any]:
    """The configuration of the harness that asks for the items' needles."""

    def score(item: dict[str, Any], results: list[str]) -> dict[str, float]:
        found = found_strings(results[0], item["outputs"])
        others = {str(length): OF_ANOTHER_LENGTH for length in lengths}
        return others | {str(item["max_length"]): sum(found) / len(found)}

    return {
        "task": name,
        "custom_dataset": lambda **_: {_SPLIT: datasets.Dataset.from_list(items)},
        "test_split": _SPLIT,
        "num_fewshot": 0,
        "output_type": "generate_until",
        "doc_to_text": "input",
        "doc_to_target": "outputs",
        "gen_prefix": "gen_prefix",
        "target_delimiter": " ",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": MAX_NEW_TOKENS, "until": []},
        "process_results": score,
        "metric_list": [
            {"metric": str(length), "aggregation": mean_of_length, "higher_is_better": True} for length in lengths
        ],
        "metadata": {"version": _VERSION, "max_seq_lengths": list(lengths)},
    }


def mean_of_length(values: Sequence[float]) -> float:
    """The mean over the items of a length; -1 where there is none, as in RULER."""
    mine = [value for value in values if value != OF_ANOTHER_LENGTH]
    return sum(mine) / len(mine) if mine else OF_ANOTHER_LENGTH
