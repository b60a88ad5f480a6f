"""Tokenized documents on disk: opened in an instant, read at random, checked before they are believed.

A store is a directory:
    meta.json      counts, dtype, tokenizer fingerprint, largest token id
    offsets.npy    int64 [documents + 1]: where each document begins in the sequence of all tokens
    tokens.bin     the tokens one after another, little-endian (encoding "memmap"), or
    tokens.array_record   one record of such bytes a document (encoding "array_record")
"""

import array
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from slmjax.data.config import StoreFormat
from slmjax.data.optional_packages import import_optional
from slmjax.errors import UserError

FORMAT_VERSION = 1
_AGAIN = "prepare the data again."
_ARRAY_RECORD = "array_record.python.array_record_module"
_FILES = {"memmap": "tokens.bin", "array_record": "tokens.array_record"}


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned little-endian type that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class StoreWriter:
    """Writes a store document by document; what it wrote is a store only after a clean exit from `with`."""

    def __init__(self, directory: str | Path, *, vocab_size: int, encoding: StoreFormat, metadata: dict[str, Any]):
        self._directory = Path(directory)
        self._directory.mkdir(parents=True)
        self._encoding, self._vocab_size, self._metadata = encoding, vocab_size, metadata
        self._dtype = token_dtype(vocab_size)
        self._offsets = array.array("q", [0])
        self._num_bytes = 0
        self._max_token = -1
        path = str(self._directory / _FILES[encoding])
        self._file: Any
        if encoding == "memmap":
            self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed in __exit__)
        else:
            module = import_optional(_ARRAY_RECORD, "data.store_format=array_record")
            self._file = module.ArrayRecordWriter(path, "group_size:1")

    def append(self, tokens: Sequence[int] | np.ndarray, num_bytes: int) -> None:
        """Add a document of token ids that stands for `num_bytes` bytes of UTF-8 text."""
        wide = np.asarray(tokens, np.int64)
        if wide.size:
            low, high = int(wide.min()), int(wide.max())
            if low < 0 or high >= self._vocab_size:
                raise UserError(f"The token id {min(low, 0) or high} is not in the vocabulary of {self._vocab_size}.")
            self._max_token = max(self._max_token, high)
        self._file.write(wide.astype(self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + wide.size)
        self._num_bytes += num_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            return
        offsets = np.frombuffer(self._offsets, np.int64)
        np.save(self._directory / "offsets.npy", offsets)
        meta = {
            **self._metadata,
            "format_version": FORMAT_VERSION,
            "encoding": self._encoding,
            "dtype": self._dtype.str,
            "vocab_size": self._vocab_size,
            "num_documents": len(offsets) - 1,
            "num_tokens": int(offsets[-1]),
            "num_bytes": self._num_bytes,
            "max_token_id": self._max_token,
        }
        (self._directory / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


class TokenStore:
    """A directory written by `StoreWriter`, read at random.

    Attributes:
        num_documents, num_tokens, num_bytes: counts; bytes are of the documents' UTF-8 text.
        offsets: int64 [num_documents + 1], memory-mapped.
        vocab_size: of the tokenizer that made it.
        tokenizer_fingerprint: of that tokenizer.
        metadata: all of meta.json.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.name = str(directory)
        self.metadata = _read_meta(self.directory)
        self.num_documents: int = self.metadata["num_documents"]
        self.num_tokens: int = self.metadata["num_tokens"]
        self.num_bytes: int = self.metadata["num_bytes"]
        self.vocab_size: int = self.metadata["vocab_size"]
        self.tokenizer_fingerprint: str = self.metadata.get("tokenizer_fingerprint", "")
        self.offsets = _read_offsets(self.directory, self.num_documents, self.num_tokens)
        path = self.directory / _FILES[self.metadata["encoding"]]
        if not path.is_file():
            raise UserError(f"{self.directory} is incomplete, since {path.name} is missing: {_AGAIN}")
        dtype = np.dtype(self.metadata["dtype"])
        self._storage: _MappedTokens | _RecordedTokens
        if self.metadata["encoding"] == "memmap":
            self._storage = _MappedTokens(path, dtype, self.offsets)
        else:
            self._storage = _RecordedTokens(path, dtype, self.num_documents)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.directory,)  # a worker process maps the files itself

    @property
    def lengths(self) -> np.ndarray:
        """int64 [num_documents]: tokens of each document, its bos and eos counted."""
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        """int32 [length]: the tokens of document `index`."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        length = self.offsets[index + 1] - self.offsets[index]
        return self.pieces(np.array([index]), np.zeros(1, np.int64), np.array([length]))

    def pieces(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32 [sum(lengths)]: the pieces document[start : start + length], one after another.

        Args:
            documents, starts, lengths: integers [n]; the pieces must lie inside their documents.
        """
        return self._storage.pieces(documents, starts, lengths)

    def loss_weights(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """float32 [sum(lengths)]: every token of a corpus is learned."""
        return np.ones(int(lengths.sum()), np.float32)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse a model whose vocabulary does not hold every id stored here.

        The largest id was recorded when the store was written; where tokens are mapped, a sample is looked at as well.
        """
        largest = max(self.metadata["max_token_id"], self._storage.largest_of_sample())
        if largest >= vocab_size:
            raise UserError(
                f"The token id {largest} in {self.directory} is beyond the vocabulary of {vocab_size}: "
                f"set model.vocab_size to at least {largest + 1}, or prepare the data with the model's tokenizer."
            )


class _MappedTokens:
    """All tokens in one file, mapped into memory."""

    def __init__(self, path: Path, dtype: np.dtype, offsets: np.ndarray):
        found, expected = path.stat().st_size, int(offsets[-1]) * dtype.itemsize
        if found != expected:
            raise UserError(f"{path} has {found:,} bytes instead of {expected:,} and is damaged: {_AGAIN}")
        # A plain ndarray over the mapping: numpy's memmap subclass makes every small slice several times dearer.
        self._tokens = np.asarray(np.memmap(path, dtype, "r") if found else np.zeros(0, dtype))
        self._offsets = offsets

    def pieces(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        begin = np.asarray(self._offsets[documents] + starts, np.int64)
        if len(begin) == 1:
            return self._tokens[begin[0] : begin[0] + lengths[0]].astype(np.int32)
        # Index of every token: its piece's begin plus its place in the piece.
        skipped = np.cumsum(lengths) - lengths
        index = np.repeat(begin - skipped, lengths) + np.arange(int(np.sum(lengths)))
        return self._tokens[index].astype(np.int32)

    def largest_of_sample(self) -> int:
        sample = self._tokens[:: max(1, len(self._tokens) // (1 << 16))]
        return int(sample.max()) if len(sample) else -1


class _RecordedTokens:
    """One ArrayRecord record for each document."""

    def __init__(self, path: Path, dtype: np.dtype, num_documents: int):
        module = import_optional(_ARRAY_RECORD, path)
        self._dtype = dtype
        try:
            self._reader = module.ArrayRecordReader(str(path))
            found = self._reader.num_records()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path} is damaged: {_AGAIN}") from error
        if found != num_documents:
            raise UserError(f"{path} has {found:,} records instead of {num_documents:,}: {_AGAIN}")

    def pieces(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        records = self._reader.read([int(document) for document in documents])
        parts = [
            np.frombuffer(record, self._dtype)[start : start + length]
            for record, start, length in zip(records, starts, lengths, strict=True)
        ]
        return np.concatenate(parts).astype(np.int32)

    def largest_of_sample(self) -> int:
        return -1


def _read_meta(directory: Path) -> dict[str, Any]:
    path = directory / "meta.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a token store (it has no meta.json): prepare the data first.")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        counts = [meta[key] for key in ("num_documents", "num_tokens", "num_bytes", "vocab_size")]
        valid = all(isinstance(count, int) and count >= 0 for count in counts) and isinstance(meta["max_token_id"], int)
        valid = valid and meta["encoding"] in _FILES and meta["dtype"] in ("<u2", "<u4")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {_AGAIN}") from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is of format {meta.get('format_version')}, not {FORMAT_VERSION}: {_AGAIN}")
    if not valid:
        raise UserError(f"{path} is damaged: {_AGAIN}")
    return meta


def _read_offsets(directory: Path, num_documents: int, num_tokens: int) -> np.ndarray:
    path = directory / "offsets.npy"
    try:
        offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is missing or damaged: {_AGAIN}") from error
    valid = offsets.dtype == np.int64 and offsets.shape == (num_documents + 1,)
    if valid:
        offsets = np.asarray(offsets)
        valid = offsets[0] == 0 and offsets[-1] == num_tokens
        for start in range(0, num_documents, 1 << 20):  # a jump backwards would read outside the tokens
            part = offsets[start : start + (1 << 20) + 1]
            valid = valid and bool((part[1:] >= part[:-1]).all())
    if not valid:
        raise UserError(f"{path} does not fit meta.json: {_AGAIN}")
    return offsets
