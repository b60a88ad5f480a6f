"""Typed, bounded access to the keys of a GGUF file that belong to its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from slmjax.errors import UserError
from slmjax.untrusted import MAX_SIZE, Values

T = TypeVar("T")


@dataclass(frozen=True)
class Keys:
    """`metadata` under the prefix of one architecture; `where` names the file in errors."""

    metadata: Mapping[str, Any]
    arch: str
    where: str

    @property
    def values(self) -> Values:
        """The keys of the architecture, read with bounds."""
        return Values(self.metadata, self.where, f"{self.arch}.")

    def integer(self, key: str, default: T, *, least: int = 0) -> int | T:
        """A whole number from `least` on; `default` where the key is absent."""
        return self.values.integer(key, default, least=least)

    def required(self, key: str) -> int:
        """A whole number from 1 on."""
        return self.values.integer(key, least=1)

    def per_layer(self, key: str, default: int | tuple[int, ...] | None, layers: int) -> int | tuple[int, ...]:
        """A whole number from 1 on, or one for each layer."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, np.ndarray):
            return self.required(key)
        if value.dtype.kind not in "iu" or len(value) != layers or value.min() < 1 or value.max() > MAX_SIZE:
            raise self.error(key, f"does not list one whole number from 1 to {MAX_SIZE:,} for each of {layers} layers")
        numbers = tuple(int(v) for v in value)
        return numbers[0] if len(set(numbers)) == 1 else numbers

    def number(self, key: str, default: T) -> float | T:
        """A finite number. float32 is read as the shortest decimal that it stands for: 1e-05, not 9.99999975e-06."""
        value = self.values.number(key, default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self.values.flag(key, default)

    def text(self, key: str, default: str) -> str:
        """A string, `default` where the key is absent."""
        return self.values.text(key, default)

    def error(self, key: str, problem: str) -> UserError:
        """An error that names the file and the key."""
        return UserError(f"{self.where}: the key {self.arch}.{key} {problem}.")
