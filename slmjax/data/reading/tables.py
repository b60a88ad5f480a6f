"""Tables to records: Parquet, Arrow (as `save_to_disk` writes it) and CSV; each record with its place in words."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slmjax.data.optional_packages import import_optional
from slmjax.data.reading.compression import MAX_LINE, Consumed, compression, lines, plain_name, refuse_pointer
from slmjax.data.reading.fields import missing_field
from slmjax.errors import UserError, one_line

_ROWS = 1024  # that become Python's objects at once
_REPEATED = 256 << 20  # bytes of a batch of values that a small file repeats
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def parquet_records(
    path: Path, consumed: Consumed = lambda _: None, fields: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file as dicts of their columns, or of the columns that `fields` (names or paths) need."""
    pyarrow, parquet = import_optional("pyarrow", path), import_optional("pyarrow.parquet", path)
    _refuse_compressed(path, "Parquet")
    try:
        with parquet.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow, fields, path)
            share = path.stat().st_size / max(1, file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(batch_size=_batch_size(file.metadata), columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", record
                consumed(int(share * batch.num_rows))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({one_line(error)}).") from error


def arrow_records(
    path: Path, consumed: Consumed = lambda _: None, fields: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of an Arrow file, in the format of streams (datasets) or of files (Feather), as dicts of their columns."""
    pyarrow, ipc = import_optional("pyarrow", path), import_optional("pyarrow.ipc", path)
    _refuse_compressed(path, "Arrow")
    try:
        if path.stat().st_size == 0:
            raise pyarrow.ArrowInvalid("it is empty")
        with pyarrow.memory_map(str(path)) as file:
            number = 0
            for batch in _batches(ipc, path, file):
                _columns(batch.schema, fields, path)
                batch.validate(full=True)  # offsets are believed otherwise
                kinds = " ".join(str(field.type) for field in batch.schema)
                repeating = any(kind in kinds for kind in ("dictionary", "run_end_encoded", "view"))
                rows = _ROWS // 64 if repeating else _ROWS  # a value that is stored once may stand in every row
                for start in range(0, batch.num_rows, rows):
                    for record in batch.slice(start, rows).to_pylist():
                        number += 1
                        yield f"{path} row {number}", record
            consumed(path.stat().st_size)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Arrow file ({one_line(error)}).") from error


def _batch_size(metadata: Any) -> int:
    """Rows to read at once: fewer where a column is much larger than its part of the file.

    A value that is stored once, in a dictionary or as the prefix of others, may stand in every row.
    """
    most = _ROWS
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            size = column.total_uncompressed_size
            if size > 1 << 20 and size > 64 * column.total_compressed_size:
                most = min(most, max(1, _REPEATED // size))
    return most


def _batches(ipc: Any, path: Path, file: Any) -> Iterator[Any]:
    if file.read(6) == b"ARROW1":
        reader = ipc.open_file(file)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        return
    file.seek(max(0, file.size() - 8))
    if file.read() != _END_OF_STREAM:  # the library takes the end of a cut file for the end
        raise UserError(f"{path} is damaged or incomplete (the stream of Arrow batches has no end).")
    file.seek(0)
    yield from ipc.open_stream(file)


def _columns(schema: Any, fields: Sequence[str], path: Path) -> list[str] | None:
    """The columns, or parts of them, that hold the fields; None, which is all, for no fields."""
    columns = []
    for field in fields:
        found = _path_in(schema, field)
        if found is None:
            raise UserError(missing_field(field, _paths(schema), str(path)))
        columns.append(found)
    return columns or None


def _path_in(schema: Any, field: str) -> str | None:
    """The longest beginning of a path that leads to a column or a part of one; None where there is none."""
    names = list(schema.names)
    if field in names:
        return field
    for end in (i for i, character in enumerate(field) if character == "."):
        name, rest = field[:end], field[end + 1 :]
        if name in names:
            kind = schema.field(name).type
            if not hasattr(kind, "num_fields") or kind.num_fields == 0 or not hasattr(kind, "names"):
                return name  # a list, or JSON as text
            inside = _path_in(_Fields(kind), rest)
            return None if inside is None else f"{name}.{inside}"
    return None


class _Fields:
    """A struct's type as `_path_in` reads a schema."""

    def __init__(self, kind: Any):
        self._kind = kind
        self.names = [kind.field(i).name for i in range(kind.num_fields)]

    def field(self, name: str) -> Any:
        return self._kind.field(self.names.index(name))


def _paths(schema: Any) -> list[str]:
    paths = []
    for name in schema.names:
        kind = schema.field(name).type
        inside = _Fields(kind).names if hasattr(kind, "names") and kind.num_fields else []
        paths += [f"{name}.{part}" for part in inside] or [name]
    return paths


def _refuse_compressed(path: Path, format: str) -> None:
    with open(path, "rb") as file:
        refuse_pointer(path, file)
    if compression(path):
        raise UserError(f"{path} is a compressed {format} file, which is read at random: decompress it first.")


def csv_records(
    path: Path, consumed: Consumed = lambda _: None, fields: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of comma- or tab-separated values (RFC 4180) under the names of the first row, all of them text.

    A .tsv file is separated by tabs; another by commas, or, where the first row has none, by semicolons or tabs.
    """
    csv.field_size_limit(MAX_LINE)
    text = _text_lines(path, consumed)
    first = next(text, "")
    separators = "\t" if Path(plain_name(path)).suffix == ".tsv" else ",;\t"
    separator = next((character for character in separators if character in first), separators[0])
    reader = csv.reader(_chained(first, text), delimiter=separator, strict=True)
    header: list[str] = []
    begin = 1
    try:
        for row in reader:
            where, begin = f"{path} line {begin}", reader.line_num + 1
            if not row:
                continue
            if not header:
                header = _header(row, fields, where)
            elif len(row) != len(header):
                raise UserError(
                    f"{where} has {len(row)} fields, and the first row names {len(header)}: put fields that hold "
                    "the separator, a quotation mark or a line break in quotation marks."
                )
            else:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path} line {begin} does not begin a row of separated values ({one_line(error)}): put fields that hold "
            "the separator, a quotation mark or a line break in quotation marks."
        ) from error


def _header(row: list[str], fields: Sequence[str], where: str) -> list[str]:
    names = [name.strip() for name in row]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{where} names the column {twice[0][:60]!r} twice: rename one of them.")
    for field in fields:
        if not any(field == name or field.startswith(f"{name}.") for name in names):
            raise UserError(missing_field(field, names, where))
    return names


def _text_lines(path: Path, consumed: Consumed) -> Iterator[str]:
    for number, line in enumerate(lines(path, consumed), 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} line {number} is not UTF-8 at byte {error.start} of the line ({error.reason}): convert the "
                "file."
            ) from error


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
