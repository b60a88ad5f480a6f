"""What to fine-tune on, as plain values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from slmjax.data.config import Packing, SourceConfig, SourceFormat, require_choice, require_integer
from slmjax.errors import UserError

Loss = Literal["assistant", "completion", "all"]
OnInvalid = Literal["error", "skip"]
OnLong = Literal["error", "skip", "truncate"]
FIELDS = (
    *("messages", "conversations", "tools", "system"),
    *("prompt", "completion", "instruction", "input", "output", "history", "text"),
)


@dataclasses.dataclass(frozen=True)
class ConversationSource:
    """One source of records, each a conversation or a piece of text (`conversations.parse_record` says which).

    Attributes:
        path: a file, directory or glob of JSON Lines, a JSON array or Parquet, or `tfds:name?split=train`.
        weight: its share of the training rows, relative to the other sources' weights.
        format: "auto" goes by the file's name; or "jsonl" (JSON arrays too), "parquet", "tfds".
        fields: where the records name a field otherwise: {our name: theirs}. {"prompt": "question", "completion":
            "answer"} trains on plain text; {"instruction": "question", "output": "answer"} on a chat.
    """

    path: str
    weight: float = 1.0
    format: SourceFormat = "auto"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.files  # refuses what no source may be
        object.__setattr__(self, "fields", dict(self.fields))
        if unknown := [name for name in self.fields if name not in FIELDS]:
            raise UserError(f"fields of {self.path}: {unknown[0]!r} is none of {', '.join(FIELDS)}")

    @property
    def files(self) -> SourceConfig:
        """Where the records lie."""
        return SourceConfig(self.path, self.weight, self.format)


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning data.

    Attributes:
        sources: by name. Plain dicts of ConversationSource's fields are taken too.
        validation: sources of their own for validation; empty holds out `validation_fraction` of `sources`.
        chat_template: empty for the tokenizer's own, "plain" for `PLAIN_TEMPLATE`, or a file of Jinja.
        system: the system prompt of conversations that have none; empty adds none.
        sequence_length: T; an example may have T + 1 tokens.
        loss: what is learned: every turn of the "assistant" (in prompt/completion records the completion), only the
            "completion" (the last turn), or "all" tokens. The end of what is learned is learned too.
        add_bos: put the tokenizer's bos before text and prompt/completion strings; a chat template writes its own.
        on_invalid: records that cannot be learned from (unknown roles, an empty answer, no turn of the assistant, a
            conversation that the template refuses) stop the run, or are skipped, counted and reported.
        on_long: the same for examples that are too long; "truncate" cuts their end off, counted and reported.
        validation_fraction: of the records, drawn by the hash of their content, so that equals are on one side.
        seed: of the split, the order and the shuffle.
        num_threads, prefetch: threads that make batches, and batches made ahead.
    """

    packing: ClassVar[Packing] = "best_fit"  # an example is never cut in two

    sources: dict[str, ConversationSource] = dataclasses.field(default_factory=dict)
    validation: dict[str, ConversationSource] = dataclasses.field(default_factory=dict)
    chat_template: str = ""
    system: str = ""
    sequence_length: int = 1024
    loss: Loss = "assistant"
    add_bos: bool = False
    on_invalid: OnInvalid = "error"
    on_long: OnLong = "error"
    validation_fraction: float = 0.05
    seed: int = 0
    num_threads: int = 2
    prefetch: int = 8

    def __post_init__(self) -> None:
        for name in ("sources", "validation"):
            object.__setattr__(self, name, _as_sources(name, getattr(self, name)))
        require_choice(self.loss, Loss, "loss")
        require_choice(self.on_invalid, OnInvalid, "on_invalid")
        require_choice(self.on_long, OnLong, "on_long")
        require_integer("sequence_length", self.sequence_length, 1)
        require_integer("seed", self.seed, 0)
        require_integer("num_threads", self.num_threads, 0)
        require_integer("prefetch", self.prefetch, 0)
        if not (isinstance(self.validation_fraction, int | float) and 0 <= self.validation_fraction < 1):
            raise UserError(f"validation_fraction must lie in [0, 1), got {self.validation_fraction!r}")


def _as_sources(what: str, values: Any) -> dict[str, ConversationSource]:
    if not hasattr(values, "items"):
        raise UserError(f"{what} must be named, as in {{'chats': {{'path': …}}}}, got {values!r}")
    sources = {}
    for name, value in values.items():
        if isinstance(value, ConversationSource):
            sources[name] = value
            continue
        try:
            sources[name] = ConversationSource(**dict(value))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"source {name!r} needs a path and may set weight, format and fields, got {value!r}"
            ) from error
    return sources
