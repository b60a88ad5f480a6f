"""What to train on and how documents become rows, as plain values."""

import dataclasses
import math
import re
from typing import Any, Literal, get_args

from slmjax.errors import UserError
from slmjax.files import local_path

SourceFormat = Literal["auto", "text", "jsonl", "parquet", "array_record", "tfds", "python"]
Packing = Literal["concat", "best_fit"]
StoreFormat = Literal["memmap", "array_record"]
_TRAIN = "train:"


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of documents.

    Attributes:
        path: a file, a directory, a glob, `tfds:name/config:version?split=train&data_dir=DIR`, or
            `python:stdlib?max_megabytes=12` (the text that the running Python installation carries).
        weight: its share of the training rows, relative to the other sources' weights.
        format: "auto" goes by the file's name.
        text_field: where records have fields (JSONL, Parquet, TFDS, JSON in ArrayRecord), the one that is the text.
    """

    path: str
    weight: float = 1.0
    format: SourceFormat = "auto"
    text_field: str = "text"

    def __post_init__(self) -> None:
        require_choice(self.format, SourceFormat, "the format of a source")
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"a source needs the path of a file, directory or glob as text, got {self.path!r}")
        if not (isinstance(self.weight, int | float) and math.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"the weight of {self.path} must be a number above 0, got {self.weight!r}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus and its packing.

    Attributes:
        sources: by name; the name becomes a directory. Plain dicts of SourceConfig's fields are taken too.
        tokenizer: path of one (`load_tokenizer`), or "train:4096" to train a byte-level BPE of that size.
        sequence_length: T, tokens in a row.
        packing: "concat" cuts the stream of documents into rows; "best_fit" keeps most documents whole and pads.
        validation_fraction: share of the documents that is held out, chosen by the hash of their text.
        add_bos: put the tokenizer's bos before each document (eos always ends it).
        seed: of the split, the order and the shuffle.
        cache_dir: where the prepared corpus goes; empty leaves the choice to the caller.
        store_format: how token ids lie on disk.
        num_threads, prefetch: threads that make batches, and batches made ahead. 0 threads make them in the caller's.
    """

    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""
    sequence_length: int = 1024
    packing: Packing = "concat"
    validation_fraction: float = 0.01
    add_bos: bool = False
    seed: int = 0
    cache_dir: str = ""
    store_format: StoreFormat = "memmap"
    num_threads: int = 2
    prefetch: int = 8

    def __post_init__(self) -> None:
        if not hasattr(self.sources, "items"):
            raise UserError(f"sources must be named, as in {{'books': {{'path': …}}}}, got {self.sources!r}")
        sources = {name: _as_source(name, value) for name, value in self.sources.items()}
        object.__setattr__(self, "sources", sources)
        for name in sources:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
                raise UserError(
                    f"a source's name becomes a directory: in {name!r} only letters, digits, _ - and . may stand"
                )
        local_path(self.cache_dir, "data.cache_dir")
        require_choice(self.packing, Packing, "packing")
        require_choice(self.store_format, StoreFormat, "store_format")
        require_integer("sequence_length", self.sequence_length, 1)
        require_integer("seed", self.seed, 0)
        require_integer("num_threads", self.num_threads, 0)
        require_integer("prefetch", self.prefetch, 0)
        if not (isinstance(self.validation_fraction, int | float) and 0 <= self.validation_fraction < 1):
            raise UserError(f"validation_fraction must lie in [0, 1), got {self.validation_fraction!r}")
        if self.tokenizer.startswith(_TRAIN):
            _ = self.trained_vocab_size

    @property
    def trained_vocab_size(self) -> int | None:
        """The size of the vocabulary to train, None where an existing tokenizer is named."""
        if not self.tokenizer.startswith(_TRAIN):
            return None
        size = self.tokenizer.removeprefix(_TRAIN)
        if not size.isdecimal() or int(size) < 257:
            raise UserError(f"tokenizer {self.tokenizer!r}: write train:SIZE with a SIZE of at least 257")
        return int(size)


def _as_source(name: str, value: Any) -> SourceConfig:
    if isinstance(value, SourceConfig):
        return value
    fields = [field.name for field in dataclasses.fields(SourceConfig)]
    try:
        return SourceConfig(**dict(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"source {name!r} needs a path and may set {', '.join(fields[1:])}, got {value!r}") from error


def require_choice(value: Any, choices: Any, what: str) -> None:
    """UserError unless `value` is one of a Literal's."""
    if value not in get_args(choices):
        raise UserError(f"{what} must be one of {', '.join(get_args(choices))}, got {value!r}")


def require_integer(name: str, value: Any, least: int) -> None:
    """UserError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be an integer of at least {least}, got {value!r}")
