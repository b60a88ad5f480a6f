"""The settings of training data, as plain values: sources, and how documents become rows. Imports nothing heavy."""

import dataclasses
import math
import re
from typing import Any, ClassVar, Literal, TypeVar, get_args

from slmjax.errors import UserError, did_you_mean, shown
from slmjax.files import local_path

OnChange = Literal["error", "use"]
DataKind = Literal["text", "conversations"]
SourceFormat = Literal["auto", "text", "jsonl", "csv", "parquet", "arrow", "array_record", "tfds", "python"]
Packing = Literal["concat", "best_fit"]
StoreFormat = Literal["memmap", "array_record"]
Source = TypeVar("Source")
_TRAIN = "train:"
_ONE_SPLIT = r"[A-Za-z0-9_.-]+(\[(-?[0-9]{1,18}%?)?:(-?[0-9]{1,18}%?)?\])?"
_SPLITS = rf"{_ONE_SPLIT}(\+{_ONE_SPLIT})*"


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """The way from documents to rows.

    Attributes:
        sequence_length: T, tokens in a row.
        packing: "concat" cuts the stream of documents into rows; "best_fit" keeps most documents whole and pads.
    """

    sequence_length: int
    packing: Packing = "concat"


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of documents.

    Attributes:
        path: a file, a directory, a glob, `tfds:name/config:version?split=train&data_dir=DIR`, or
            `python:stdlib?max_megabytes=12` (the text that the running Python installation carries).
        weight: its share of the training rows, relative to the other sources' weights.
        format: "auto" goes by the file's name. "jsonl" is every kind of JSON, "csv" is separated by commas or tabs.
        text_field: where records have fields (all but text), the one that is the text, or its path, as in "meta.text".
        split: of a directory of files that tell their split, those that are read: "train", "train[:10%]",
            "train+validation". Empty reads all files, but of a Hugging Face dataset with several splits only "train".
    """

    path: str
    weight: float = 1.0
    format: SourceFormat = "auto"
    text_field: str = "text"
    split: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"A source needs the path of a file, directory or glob as text, not {self.path!r}.")
        if not self.path.startswith(("tfds:", "python:")):
            local_path(self.path, "The source")
        require_choice(f"The format {self.format!r} of the source {self.path}", self.format, SourceFormat)
        if not (isinstance(self.weight, int | float) and math.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"The weight of the source {self.path} must be a number above 0, not {self.weight!r}.")
        if not isinstance(self.split, str) or (self.split and not re.fullmatch(_SPLITS, self.split)):
            raise UserError(
                f"The split {str(self.split)[:60]!r} of the source {self.path} must be names of splits, as in train, "
                "train[:10%] or train+validation."
            )


@dataclasses.dataclass(frozen=True)
class BaseDataConfig:
    """The keys of the config section `data` that text and conversations share.

    Attributes:
        kind: what the sources hold, "text" (`DataConfig`) or "conversations" (`SftConfig`).
        sources: by name. Plain dicts of the source's fields are taken too.
        sequence_length: T, tokens in a row.
        validation_fraction: share of the documents that is held out, chosen by the hash of their content.
        add_bos: put the tokenizer's bos before each document (eos always ends it).
        seed: of the split, the order and the shuffle.
        num_threads, prefetch: threads that make batches, and batches made ahead. 0 threads make them in the caller's.
        on_change: of a run that goes on, where its data are no longer those that it was trained on: "error" goes on
            with the corpus that was prepared, and refuses where there is none; "use" goes on with the data as they are.
    """

    kind: DataKind = "text"
    sources: dict[str, Any] = dataclasses.field(default_factory=dict)
    sequence_length: int = 1024
    validation_fraction: float = 0.01
    add_bos: bool = False
    seed: int = 0
    num_threads: int = 2
    prefetch: int = 8
    on_change: OnChange = "error"

    source_class: ClassVar[type] = SourceConfig

    def __post_init__(self) -> None:
        if self.kind != type(self).kind:
            raise UserError(
                f"data.kind={self.kind!r} does not fit a {type(self).__name__}, whose kind is {type(self).kind!r}: "
                "give default_config the data config of the kind that you want."
            )
        self._convert_sources("sources")
        require_integer("data.sequence_length", self.sequence_length, 1)
        require_integer("data.seed", self.seed, 0)
        require_integer("data.num_threads", self.num_threads, 0)
        require_integer("data.prefetch", self.prefetch, 0)
        require_choice(f"data.on_change={self.on_change!r}", self.on_change, OnChange)
        if not (isinstance(self.validation_fraction, int | float) and 0 <= self.validation_fraction < 1):
            raise UserError(
                f"data.validation_fraction={self.validation_fraction!r} must be a number of at least 0 and below 1."
            )

    def row_layout(self) -> RowLayout:
        """The way from documents to rows."""
        raise NotImplementedError

    def _convert_sources(self, name: str) -> None:
        """Make the plain dicts of the field `name` sources."""
        key, values = f"data.{name}", getattr(self, name)
        if not hasattr(values, "items"):
            raise UserError(f"{key}={values!r} must give each source a name, as in {{'mine': {{'path': 'a.jsonl'}}}}.")
        sources: dict[str, Any] = {
            name: _as_source(f"{key}.{name}", value, self.source_class) for name, value in values.items()
        }
        object.__setattr__(self, name, sources)


@dataclasses.dataclass(frozen=True)
class DataConfig(BaseDataConfig):
    """A corpus of text and its packing; the shared keys are documented in `BaseDataConfig`.

    Attributes:
        sources: a source's name becomes a directory.
        tokenizer: path of one (`load_tokenizer`), or "train:4096" to train a byte-level BPE of that size.
        packing: see `RowLayout`.
        cache_dir: where the prepared corpus goes; empty leaves the choice to the caller.
        store_format: how token ids lie on disk.
    """

    kind: DataKind = "text"
    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""
    packing: Packing = "concat"
    cache_dir: str = ""
    store_format: StoreFormat = "memmap"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.sources:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
                raise UserError(
                    f"The name of the source {name!r} may contain only letters, digits, '_', '-' and '.', "
                    "since it becomes a directory: rename it in data.sources."
                )
        for name in ("cache_dir", "tokenizer"):
            if value := getattr(self, name):
                local_path(value, f"data.{name}")
        require_choice(f"data.packing={self.packing!r}", self.packing, Packing)
        require_choice(f"data.store_format={self.store_format!r}", self.store_format, StoreFormat)
        if self.tokenizer.startswith(_TRAIN):
            _ = self.trained_vocab_size

    def row_layout(self) -> RowLayout:
        """The way from documents to rows."""
        return RowLayout(self.sequence_length, self.packing)

    @property
    def trained_vocab_size(self) -> int | None:
        """The size of the vocabulary to train, None where an existing tokenizer is named."""
        if not self.tokenizer.startswith(_TRAIN):
            return None
        size = self.tokenizer.removeprefix(_TRAIN)
        if not size.isdecimal() or int(size) < 257:
            raise UserError(f"data.tokenizer={self.tokenizer!r} must be train:SIZE with a SIZE of at least 257.")
        return int(size)


def _as_source(key: str, value: Any, cls: type[Source]) -> Source:
    if isinstance(value, cls):
        return value
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    try:
        return cls(**dict(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}={value!r} must give a path, and may give {', '.join(fields[1:])}.") from error


def require_choice(what: str, value: Any, choices: Any) -> None:
    """UserError unless `value` is one of a Literal's; `what` names and quotes it."""
    known = get_args(choices)
    if value not in known:
        raise UserError(f"{what} is unknown: {did_you_mean(value if isinstance(value, str) else shown(value), known)}")


def require_integer(key: str, value: Any, least: int) -> None:
    """UserError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}={value!r} must be an integer of at least {least}.")
