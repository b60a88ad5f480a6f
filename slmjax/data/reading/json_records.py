"""JSON files: a value on each line, values one after another, or one array, which is read as it comes."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmjax.data.reading.compression import MAX_LINE, Consumed, blocks, lines, plain_name
from slmjax.errors import UserError, one_line

_SPREAD = re.compile(r"[\[{]|\[\s*\{.*", re.DOTALL)  # the first line of an array or object that has several lines
_LISTS = ("data", "rows", "examples", "records", "instances")  # fields of an object around all records
_SPACE = re.compile(r"[ \t\r\n]*")


def json_records(path: Path, consumed: Consumed = lambda _: None) -> Iterator[tuple[str, Any]]:
    """The records of a file of JSON Lines, of a JSON array, or of an object around one, each with its place in words.

    Raises:
        UserError: damage, with its place.
    """
    if _is_by_lines(path):
        yield from _by_lines(path, consumed)
    else:
        yield from _one_after_another(path, consumed)


def _is_by_lines(path: Path) -> bool:
    reading = blocks(path)
    beginning = next(reading, b"")
    reading.close()  # type: ignore[attr-defined]
    first, end, rest = beginning.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    is_array_file = Path(plain_name(path)).suffix == ".json"
    if is_array_file and (first.startswith(b"[") or not end):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return _SPREAD.fullmatch(first.decode(errors="replace").strip()) is None
    if is_array_file:
        return _records_inside(value) is None
    alone = not rest.strip() and len(beginning) < 1 << 20
    return not (
        alone
        and isinstance(value, list)
        and value
        and all(map(_is_object, value))
        and not {"role", "from"} & value[0].keys()
    )


def _by_lines(path: Path, consumed: Consumed) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines(path, consumed), 1):
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


def _one_after_another(path: Path, consumed: Consumed) -> Iterator[tuple[str, Any]]:
    """The elements of arrays and other values, as many as there are."""
    text = _Text(path, consumed)
    number = 0
    while opening := text.peek():
        if opening != "[":
            value = text.value(f"{path} record {number + 1}")
            inside = _records_inside(value)
            for record in [value] if inside is None else inside:
                number += 1
                yield f"{path} record {number}", record
            continue
        text.skip()
        separator = "," if text.peek() != "]" else text.skip()
        while separator == ",":
            number += 1
            where = f"{path} record {number}"
            yield where, text.value(where)
            separator = text.skip() if text.peek() else ""
        if separator != "]":
            found = repr(separator) if separator else "the end of the file"
            raise UserError(
                f"{path} is not a whole JSON array: line {text.line}, after record {number}, has {found} for a comma "
                "or a closing bracket."
            )


def _records_inside(value: Any) -> list[Any] | None:
    """The records in an object around all of them."""
    if not isinstance(value, dict):
        return None
    found = [value[name] for name in _LISTS if isinstance(value.get(name), list) and all(map(_is_object, value[name]))]
    return found[0] if len(found) == 1 else None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


class _Text:
    """The characters of a file from a place on, of which a value's worth is in memory."""

    def __init__(self, path: Path, consumed: Consumed):
        self._path = path
        self._blocks = blocks(path, consumed)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._read = 0  # bytes
        self._text, self._at, self._ended = "", 0, False
        self._parse = json.JSONDecoder().raw_decode
        self.line = 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._go_to(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill()

    def skip(self) -> str:
        """The character that `peek` saw, passed over."""
        character = self._text[self._at]
        self._go_to(self._at + 1)
        return character

    def value(self, where: str) -> Any:
        """The JSON value that begins here. One that does not fit into what was read is tried with twice as much."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if self._ended or not cut:
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise UserError(f"{where} is not valid JSON ({error.msg} at line {line}).") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not valid JSON ({one_line(error)}).") from error
            else:
                if end < len(self._text) or self._ended:  # else a number might go on
                    self._go_to(end)
                    return value
            if len(self._text) - self._at > MAX_LINE:
                raise UserError(f"{where} has more than {MAX_LINE >> 20} MiB: split the file into smaller records.")
            self._fill()

    def _go_to(self, place: int) -> None:
        self.line += self._text.count("\n", self._at, place)
        self._at = place

    def _fill(self) -> None:
        """Read as much again as there is; so a long value is parsed a number of times that grows with its logarithm."""
        parts = [self._text[self._at :]]
        wanted = max(1, len(parts[0]))
        while wanted > 0 and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            try:
                parts.append(self._decoder.decode(block, final=self._ended))
            except UnicodeDecodeError as error:
                place = self._read + len(block) - len(error.object) + error.start
                raise UserError(f"{self._path} is not UTF-8 at byte {place} ({error.reason}): convert it.") from error
            self._read += len(block)
            wanted -= len(parts[-1])
        self._text, self._at = "".join(parts), 0
