"""Values for the fields of a dataclass, as a user gave them: of the annotated types, or refused in a sentence."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from slmjax.errors import UserError, shown

MAX_INTEGER = (1 << 63) - 1  # what numpy and XLA can count to
_SCALARS = {int: "an integer", float: "a number", str: "text", bool: "True or False", type(None): "None"}


def check_fields(cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Check the values of those fields that `cls` has; keys that it does not have are the caller's to refuse.

    prefix: before each field's name in a message ("training."). Integers have at most 63 bits, numbers are finite.

    Raises:
        UserError: the first value that is not of its field's type, and what it must be.
    """
    hints = field_types(cls)
    for name, value in values.items():
        if name in hints:
            check_value(f"{prefix}{name}", value, hints[name])


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check_value(key: str, value: Any, wanted: Any) -> None:
    """UserError unless `value` is of the type `wanted`; `key` is what the message calls it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        raise UserError(f"{key}={shown(value)} must be at most {MAX_INTEGER} and at least {-MAX_INTEGER}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value} must be a finite number.")
    if isinstance(value, str) and not _is_text(value):
        raise UserError(f"{key}={value!r} must be text that UTF-8 can stand for, without the character NUL.")
    kinds = [kind for kind in typing.get_args(wanted) if kind is not type(None)]
    if typing.get_origin(wanted) in (typing.Union, types.UnionType) and len(kinds) == 1 and value is not None:
        wanted = kinds[0] if isinstance(value, Mapping | list | tuple) else wanted
    if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
        check_fields(wanted, value, f"{key}.")  # type: ignore[arg-type]
    elif isinstance(value, list | tuple) and typing.get_origin(wanted) is tuple:
        items = typing.get_args(wanted)
        if items[-1] is not Ellipsis and len(items) != len(value):
            raise UserError(f"{key}={shown(value)} must have {len(items)} values.")
        for item, kind in zip(value, items if items[-1] is not Ellipsis else [items[0]] * len(value), strict=True):
            check_value(key, item, kind)
    elif isinstance(value, Mapping) and typing.get_origin(wanted) in (dict, Mapping):
        for name, item in value.items():
            check_value(f"{key}.{name}", item, typing.get_args(wanted)[1])
    elif not _fits(value, wanted):
        raise UserError(f"{key}={shown(value)} must be {_described(wanted)}.")


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is Any:
        return True
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return any(_passes(value, kind) for kind in typing.get_args(wanted))
    if typing.get_origin(wanted) is typing.Literal:
        return isinstance(value, str)  # the field's class says what there is to choose from
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) if isinstance(wanted, type) else False


def _passes(value: Any, wanted: Any) -> bool:
    try:
        check_value("", value, wanted)
    except UserError:
        return False
    return True


def _described(wanted: Any) -> str:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(kind) for kind in arguments)
    if origin is tuple:
        return f"a tuple, of {_described(arguments[0])} each" if arguments[-1] is Ellipsis else "a tuple"
    if origin is typing.Literal:
        return "text"
    return _SCALARS.get(wanted, "a table of keys and values")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
