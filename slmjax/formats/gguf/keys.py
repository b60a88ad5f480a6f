"""Typed, bounded access to the keys of a GGUF file that belong to its architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from slmjax.errors import UserError

_MAX_SIZE = 1 << 27  # of any whole number: far above any model's, and a bound on what a file makes us count to
T = TypeVar("T")


@dataclass(frozen=True)
class Keys:
    """`metadata` under the prefix of one architecture; `where` names the file in errors."""

    metadata: Mapping[str, Any]
    arch: str
    where: str

    def integer(self, key: str, default: T, *, least: int = 0) -> int | T:
        """A whole number from `least` on; `default` where the key is absent."""
        value = self._get(key)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= _MAX_SIZE:
            raise self.error(key, f"is {_short(value)}, no whole number from {least} to {_MAX_SIZE}")
        return value

    def required(self, key: str) -> int:
        """A whole number from 1 on."""
        value = self.integer(key, None, least=1)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def per_layer(self, key: str, default: int | tuple[int, ...] | None, layers: int) -> int | tuple[int, ...]:
        """A whole number from 1 on, or one for each layer."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, np.ndarray):
            return self.required(key)
        if value.dtype.kind not in "iu" or len(value) != layers or value.min() < 1 or value.max() > _MAX_SIZE:
            raise self.error(key, f"does not list one whole number from 1 to {_MAX_SIZE} for each of {layers} layers")
        numbers = tuple(int(v) for v in value)
        return numbers[0] if len(set(numbers)) == 1 else numbers

    def number(self, key: str, default: T) -> float | T:
        """A finite number. float32 is read as the shortest decimal that it stands for: 1e-05, not 9.99999975e-06."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"is {_short(value)}, no finite number")
        return float(str(np.float32(value)))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"is {_short(value)}, neither true nor false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, f"is {_short(value)}, no text")
        return value

    def error(self, key: str, problem: str) -> UserError:
        """An error that names the file and the key."""
        return UserError(f"{self.where}: the key {self.arch}.{key} {problem}.")

    def _get(self, key: str) -> Any:
        return self.metadata.get(f"{self.arch}.{key}")


def _short(value: Any) -> str:
    return repr(value)[:60]
