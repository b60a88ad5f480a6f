"""The settings of fine-tuning data, as plain values. Imports nothing heavy."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from slmjax.data.config import (
    BaseDataConfig,
    DataConfig,
    DataKind,
    RowLayout,
    SourceConfig,
    SourceFormat,
    require_choice,
)
from slmjax.errors import UserError, did_you_mean, shown

Loss = Literal["assistant", "completion", "all"]
OnInvalid = Literal["error", "skip"]
OnLong = Literal["error", "skip", "truncate"]
# fmt: off
FIELDS = (
    "messages", "conversations", "tools", "system",
    "prompt", "completion", "instruction", "input", "output", "history", "text",
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class ConversationSource:
    """One source of records, each a conversation or a piece of text (`parse_record` says which).

    Attributes:
        path: a file, directory or glob of JSON Lines, a JSON array, CSV, Parquet or Arrow, or `tfds:name?split=train`.
        weight: its share of the training rows, relative to the other sources' weights.
        format: "auto" goes by the file's name; or "jsonl" (JSON arrays too), "csv", "parquet", "arrow", "tfds".
        fields: where the records name a field otherwise: {our name: theirs}. {"prompt": "question", "completion":
            "answer"} trains on plain text; {"instruction": "question", "output": "answer"} on a chat. Theirs may be a
            path, as in {"messages": "data.turns"}.
        split: see `SourceConfig`.
    """

    path: str
    weight: float = 1.0
    format: SourceFormat = "auto"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str = ""

    def __post_init__(self) -> None:
        _ = self.files  # refuses what no source may be
        object.__setattr__(self, "fields", dict(self.fields))
        for name in self.fields:
            if name not in FIELDS:
                raise UserError(
                    f"The fields of the source {self.path} name the unknown {name!r}: {did_you_mean(name, FIELDS)}"
                )

    @property
    def files(self) -> SourceConfig:
        """The files of records, as a source of documents."""
        return SourceConfig(self.path, self.weight, self.format, split=self.split)


@dataclasses.dataclass(frozen=True)
class SftConfig(BaseDataConfig):
    """Supervised fine-tuning data; the shared keys are documented in `BaseDataConfig`.

    Attributes:
        sequence_length: T; an example may have T + 1 tokens.
        validation: sources of their own for validation; empty holds out `validation_fraction` of `sources`.
        chat_template: empty for the tokenizer's own, "plain" for `PLAIN_TEMPLATE`, or a file of Jinja.
        system: the system prompt of conversations that have none; empty adds none.
        loss: what is learned: every turn of the "assistant" (in prompt/completion records the completion), only the
            "completion" (the last turn), or "all" tokens. The end of what is learned is learned too. A turn that says
            so itself (`weight`, `train`, `training` or `loss`: 0 or false) is not learned.
        add_bos: put the tokenizer's bos before text and prompt/completion strings; a chat template writes its own.
        on_invalid: records that cannot be learned from (unknown roles, an empty answer, no turn of the assistant, a
            conversation that the template refuses or whose tool calls it drops) stop the run, or are skipped, counted
            and reported.
        on_long: the same for examples that are too long; "truncate" cuts their end off, counted and reported.
    """

    kind: DataKind = "conversations"
    sources: dict[str, ConversationSource] = dataclasses.field(default_factory=dict)
    validation: dict[str, ConversationSource] = dataclasses.field(default_factory=dict)
    chat_template: str = ""
    system: str = ""
    loss: Loss = "assistant"
    on_invalid: OnInvalid = "error"
    on_long: OnLong = "error"
    validation_fraction: float = 0.05

    source_class: ClassVar[type] = ConversationSource

    def __post_init__(self) -> None:
        super().__post_init__()
        self._convert_sources("validation")
        require_choice(f"data.loss={self.loss!r}", self.loss, Loss)
        require_choice(f"data.on_invalid={self.on_invalid!r}", self.on_invalid, OnInvalid)
        require_choice(f"data.on_long={self.on_long!r}", self.on_long, OnLong)

    def row_layout(self) -> RowLayout:
        """Rows of whole examples: none is ever cut in two."""
        return RowLayout(self.sequence_length, "best_fit")


DATA_CONFIGS: dict[DataKind, type[DataConfig] | type[SftConfig]] = {"text": DataConfig, "conversations": SftConfig}


def data_config_class(section: Mapping[str, Any]) -> type[DataConfig] | type[SftConfig]:
    """The class of a config section `data`, by its `kind`; by its other keys in sections written without one.

    Raises:
        UserError: an unknown kind.
    """
    if "kind" not in section:  # a config.json of a version that had no such key
        return SftConfig if "chat_template" in section else DataConfig
    require_choice(f"data.kind={shown(section['kind'])}", section["kind"], DataKind)
    return DATA_CONFIGS[section["kind"]]
