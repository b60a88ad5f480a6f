"""Values of records as files have them: blank, as text, as arrays."""

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.errors import UserError, one_line

_SEQUENCES = ("messages", "conversations", "prompt", "completion")  # of messages; TFDS stores them as columns
_KINDS = {list: "a list", dict: "an object", (dict, list): "an object or a list"}
_LONGEST_LITERAL = 1 << 20  # characters; Python's parser needs some hundred bytes for each


def is_blank(value: Any) -> bool:
    """Whether a value says no more than a missing one: null, NaN, white space, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, list | dict) and not value)


def filled(text: Any, what: str) -> str:
    """`text`, which must be one and not blank; `what` is the subject of the error's sentence."""
    if not isinstance(text, str):
        raise UserError(f"{what} must be text, not {type(text).__name__}.")
    if not text.strip():
        raise UserError(f"{what} is empty.")
    return text


def structure(value: Any, kind: Any, what: str) -> Any:
    """`value` of the wanted type, `dict`, `list` or both, out of text if it is such; None for null.

    Text is JSON (CSV has no other way for structures, Parquet none for open ones), or what Python prints, which is what
    pandas writes into CSV.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            value = _literal(value)
            if not isinstance(value, list | dict):
                raise UserError(f"{what} is not valid JSON ({one_line(error)}).") from error
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{what} must be {_KINDS[kind]}, not {type(value).__name__}.")
    return value


def objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects, each of which may be JSON text; empty for null."""
    items = structure(value, list, what) or []
    return [structure(item, dict, f"{what}, item {number},") or {} for number, item in enumerate(items, 1)]


def plain(value: Any) -> Any:
    """TFDS's arrays and bytes as lists and text; its sequences of features, {name: list}, as lists of dicts.

    What JSON has no word for, such as the dates of Parquet, becomes text.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"The record has text that is not UTF-8 (byte {error.start}).") from error
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {
            name: _columns_to_records(plain(item)) if name in _SEQUENCES else plain(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _columns_to_records(value: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1:
        raise UserError("The messages have fields of different lengths.")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _literal(text: str) -> Any:
    """The list or dict that Python prints as `text`, None where it is none."""
    if len(text) > _LONGEST_LITERAL or text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
