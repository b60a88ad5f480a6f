"""Readers of text, ArrayRecord and TensorFlow Datasets: iterators of texts or records, damage told with its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmjax.data.optional_packages import import_optional
from slmjax.data.reading.compression import Consumed, blocks
from slmjax.data.reading.fields import decoded, text_of
from slmjax.errors import UserError, one_line

_LARGE_TEXT = 16 << 20  # a text file up to this size (bytes) is one document; a larger one is cut
_PIECE = 256 << 10  # into documents of at most so many characters


def read_text(path: Path, consumed: Consumed) -> Iterator[str]:
    """A text file as one document; a large one as documents cut at blank lines."""
    large = path.stat().st_size > _LARGE_TEXT
    pending, offset, first = bytearray(), 0, True
    text = ""
    for block in blocks(path, consumed):
        if b"\0" in block:
            at = offset + len(pending) + block.index(b"\0")
            raise UserError(f"{path} is not a text file: byte {at} is NUL.")
        pending += block
        decoded, rest = _decode_prefix(pending, path, offset)
        offset += len(pending) - len(rest)
        pending = rest
        text += decoded.removeprefix("\ufeff") if first else decoded
        first = False
        large = large or offset > _LARGE_TEXT  # a compressed file shows its size only now
        while large and len(text) > _PIECE:
            cut = _cut_place(text, 0, _PIECE)
            yield text[:cut]
            text = text[cut:]
    if pending:
        raise UserError(f"{path} is not UTF-8: it ends inside a character, at byte {offset}.")
    yield text


def _decode_prefix(data: bytearray, path: Path, offset: int) -> tuple[str, bytearray]:
    """The text of `data`, and the bytes of a character that the block's end may have cut."""
    try:
        return data.decode(), bytearray()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and len(data) - error.start < 4:
            return data[: error.start].decode(), data[error.start :]
        raise UserError(f"{path} is not UTF-8 at byte {offset + error.start} ({error.reason}): convert it.") from error


def read_array_record(path: Path, text_field: str, consumed: Consumed) -> Iterator[str]:
    """Records that are UTF-8 text, or JSON objects with the field."""
    module = import_optional("array_record.python.array_record_module", path)
    try:
        reader = module.ArrayRecordReader(str(path))
        count = reader.num_records()
        if count == 0:  # the library reads a file without its end as an empty one
            raise UserError(f"{path} has no records: it is empty or truncated.")
        for start in range(0, count, 256):
            stop = min(start + 256, count)
            for number, record in enumerate(reader.read(list(range(start, stop))), start):
                yield _record_text(record, text_field, f"{path} record {number}")
            consumed(path.stat().st_size * (stop - start) // count)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a readable ArrayRecord file ({one_line(error)}).") from error


def _record_text(record: bytes, text_field: str, where: str) -> str:
    """A record is UTF-8 text, or a JSON object with the field."""
    text = decoded(record, where)
    if text.startswith("{"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return text_of(parsed, text_field, where)
    return text


def tfds_records(name: str, split: str, data_dir: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of TensorFlow Datasets splits that are stored as ArrayRecord; TensorFlow is not imported.

    Args:
        name: name, name/config or name/config:version.
        split: such as "train", "train[:10%]" or "train+test".
        data_dir: where it was prepared, None for the library's own place.
    """
    tfds = import_optional("tensorflow_datasets", name)
    for part in split.split("+"):
        try:
            records = tfds.data_source(name, split=part, data_dir=data_dir)
            count = len(records)
        except Exception as error:  # the library raises many kinds for an absent or unprepared data set
            raise UserError(
                f"The TFDS data set {name} cannot be opened ({' '.join(str(error).split())[:300]})."
            ) from error
        for number in range(count):
            where = f"{name} {part} record {number}"
            record = records[number]
            if not isinstance(record, dict):
                raise UserError(f"{where} has no fields.")
            yield where, record


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters that join to `text`, cut at blank lines, else lines, else words."""
    start = 0
    while len(text) - start > limit:
        cut = _cut_place(text, start, start + limit)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _cut_place(text: str, start: int, end: int) -> int:
    for mark in ("\n\n", "\n\r\n", "\n", " "):
        at = text.rfind(mark, start + (end - start) // 4, end)
        if at >= 0:
            return at + len(mark)
    return end
