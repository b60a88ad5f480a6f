"""Fields of records by their name or path, and texts out of them."""

import json
from collections.abc import Mapping
from typing import Any

from slmjax.errors import UserError, first_few

ABSENT: Any = object()


def find_field(record: Any, name: str) -> Any:
    """The value of a field, `ABSENT` where there is none.

    `meta.text` is the field of that very name, or else `text` in the object `meta`, which may also be JSON written as
    text; `choices.0.text` counts into a list from 0. Inside of null everything is null.
    """
    if isinstance(record, str) and record.lstrip()[:1] in ("{", "["):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError):
            return ABSENT
    if isinstance(record, list):
        record = {str(number): item for number, item in enumerate(record)}
    if not isinstance(record, Mapping):
        return ABSENT
    if name in record:
        return record[name]
    for end in (i for i, character in enumerate(name) if character == "."):
        if name[:end] in record:
            inside = record[name[:end]]
            found = None if inside is None else find_field(inside, name[end + 1 :])
            if found is not ABSENT:
                return found
    return ABSENT


def text_of(record: Any, field: str, where: str) -> str:
    """The text in a field of a record, empty where it is null.

    Raises:
        UserError: the record is not an object, or has no such text.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} is a JSON {type(record).__name__}, not an object with a field {field!r}.")
    value = find_field(record, field)
    if value is ABSENT:
        raise UserError(missing_field(field, list(record), where))
    return "" if value is None else checked_text(value, field, where)


def checked_text(value: Any, field: str, where: str) -> str:
    """`value` as text; bytes are UTF-8."""
    if isinstance(value, bytes):
        return decoded(value, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: the field {field!r} must be text, not {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start} of {field!r} is a lone surrogate, which is not text: fix it."
        ) from error
    return value


def decoded(data: bytes, where: str) -> str:
    """UTF-8 as text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start} ({error.reason}): convert it.") from error


def missing_field(field: str, fields: list[str], where: str) -> str:
    """The sentence about a field that a record does not have."""
    names = [str(name)[:60] for name in fields]
    return f"{where} has no field {field!r}: set the source's text_field to one of {first_few(names, 20)}."
