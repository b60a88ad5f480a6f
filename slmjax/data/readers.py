"""One reader a format: a file becomes an iterator of its texts, and damage is reported with its place."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from slmjax.data.optional_packages import import_optional
from slmjax.errors import UserError, first_few, one_line

Consumed = Callable[[int], object]  # told how many bytes of the files were read since the last call

_LARGE_TEXT = 16 << 20  # a text file up to this size (bytes) is one document; a larger one is cut
_PIECE = 256 << 10  # into documents of at most so many characters
_MAX_LINE = 256 << 20  # bytes of a JSONL line


def read_text(path: Path, text_field: str, consumed: Consumed) -> Iterator[str]:
    """A text file as one document; a large one as documents cut at blank lines."""
    large = path.stat().st_size > _LARGE_TEXT
    pending, offset, first = bytearray(), 0, True
    text = ""
    for block in _blocks(path, consumed):
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


def read_jsonl(path: Path, text_field: str, consumed: Consumed) -> Iterator[str]:
    """The field of each line's JSON object."""
    for where, record in jsonl_records(path, consumed):
        yield _field(record, text_field, where)


def jsonl_records(path: Path, consumed: Consumed) -> Iterator[tuple[str, Any]]:
    """Each line's JSON value, with its place in words."""
    for number, line in enumerate(_lines(path, consumed), 1):
        where = f"{path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} is not UTF-8 at byte {error.start} of the line ({error.reason}): convert the file."
            ) from error
        if not text:
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where} is not a JSON record ({one_line(error)}): each line must be one JSON object."
            ) from error
        yield where, record


def json_records(path: Path, consumed: Consumed) -> Iterator[tuple[str, Any]]:
    """The values of a .json file's array, or those of JSON Lines, each with its place in words."""
    suffix = Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix
    blocks = _blocks(path, consumed)
    first = next(blocks, b"").removeprefix(b"\xef\xbb\xbf")
    if suffix != ".json" or not first.lstrip().startswith(b"["):
        blocks.close()  # type: ignore[attr-defined]
        yield from jsonl_records(path, consumed)
        return
    content = bytearray(first)
    for block in blocks:
        content += block
        if len(content) > _MAX_LINE:
            raise UserError(f"{path} is a JSON array of more than {_MAX_LINE >> 20} MiB: write it as JSON Lines.")
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({one_line(error)}).") from error
    for number, record in enumerate(records, 1):
        yield f"{path} record {number}", record


def read_parquet(path: Path, text_field: str, consumed: Consumed) -> Iterator[str]:
    """The column's texts, row group by row group; nulls are left out."""
    for where, record in parquet_records(path, consumed, [text_field]):
        if record[text_field] is not None:
            yield _checked(record[text_field], text_field, where)


def parquet_records(
    path: Path, consumed: Consumed, columns: list[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows as dicts of the columns (all of them by default), each with its place in words."""
    pyarrow, parquet = import_optional("pyarrow", path), import_optional("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise UserError(_missing(column, file.schema_arrow.names, str(path)))
            number = 0
            share = path.stat().st_size / max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", record
                consumed(int(share * batch.num_rows))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({one_line(error)}).") from error


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
    text = _decoded(record, where)
    if text.startswith("{"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return _field(parsed, text_field, where)
    return text


def read_tfds(name: str, split: str, data_dir: str | None, text_field: str) -> Iterator[str]:
    """Texts of a TensorFlow Datasets split: of each record the feature `text_field`; see `tfds_records`."""
    for where, record in tfds_records(name, split, data_dir):
        if text_field not in record:
            raise UserError(_missing(text_field, list(record), where))
        value = record[text_field]
        yield _checked(_decoded(value, where) if isinstance(value, bytes) else value, text_field, where)


def tfds_records(name: str, split: str, data_dir: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a TensorFlow Datasets split that is stored as ArrayRecord; TensorFlow is not imported.

    Args:
        name: name, name/config or name/config:version.
        split: such as "train" or "train[:10%]".
        data_dir: where it was prepared, None for the library's own place.
    """
    tfds = import_optional("tensorflow_datasets", name)
    try:
        records = tfds.data_source(name, split=split, data_dir=data_dir)
        count = len(records)
    except Exception as error:  # the library raises many kinds for an absent or unprepared data set
        raise UserError(f"The TFDS data set {name} cannot be opened ({' '.join(str(error).split())[:300]}).") from error
    for number in range(count):
        where = f"{name} {split} record {number}"
        record = records[number]
        if not isinstance(record, dict):
            raise UserError(f"{where} has no fields.")
        yield where, record


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start} ({error.reason}): convert it.") from error


def _field(record: Any, text_field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{where} is a JSON {type(record).__name__}, not an object with a field {text_field!r}.")
    if text_field not in record:
        raise UserError(_missing(text_field, list(record), where))
    value = record[text_field]
    return "" if value is None else _checked(value, text_field, where)


def _checked(value: Any, text_field: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: the field {text_field!r} must be text, not {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start} of {text_field!r} is a lone surrogate, which is not text: fix it."
        ) from error
    return value


def _missing(text_field: str, fields: list[str], where: str) -> str:
    return (
        f"{where} has no field {text_field!r}: set the source's text_field to one of "
        f"{first_few(list(map(str, fields)), 20)}."
    )


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


def _open(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix.lower() == ".zst":
        zstandard = import_optional("zstandard", path)
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


def _blocks(path: Path, consumed: Consumed, size: int = 1 << 20) -> Iterator[bytes]:
    """The decompressed content, block by block."""
    told = 0
    with open(path, "rb") as raw:
        stream = _open(path, raw)
        while True:
            try:
                block = stream.read(size)
            except (EOFError, zlib.error, OSError) as error:
                raise UserError(f"{path} is damaged or incomplete ({one_line(error)}).") from error
            except Exception as error:
                if type(error).__name__ != "ZstdError":  # a class of an optional package
                    raise
                raise UserError(f"{path} is damaged or incomplete ({one_line(error)}).") from error
            position = raw.tell()
            consumed(position - told)
            told = position
            if not block:
                return
            yield block


def _lines(path: Path, consumed: Consumed) -> Iterator[bytes]:
    rest = b""
    for block in _blocks(path, consumed):
        *complete, rest = (rest + block).split(b"\n")
        yield from complete
        if len(rest) > _MAX_LINE:
            raise UserError(f"{path} has a line of more than {_MAX_LINE >> 20} MiB: is it JSON Lines?")
    if rest:
        yield rest
