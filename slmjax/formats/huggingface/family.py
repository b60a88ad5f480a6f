"""One `model_type` of Hugging Face: all that reading and writing its directories takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slmjax.formats.weight_map import Entry
from slmjax.models.config import ModelConfig


@dataclass(frozen=True)
class HuggingFaceFamily:
    """One family: how its config.json translates, and which of its tensors are which of our arrays.

    config_from: reads the configs of transformers 4 and 5; UserError where a switch is not one of ours.
    config_to: the family's own keys in both dialects at once. Where a config is beyond the family, what it writes
        reads back as another config, or it raises UserError.
    entries: every tensor that a file must hold, and no other; the head's only when untied.
    ignored: full-match patterns of tensors that files ship and that are no parameters (rotary inv_freq, masks).
    renames: (pattern, replacement) for the names that other files of the family use; the first that matches applies.
    """

    model_type: str
    architecture: str
    config_from: Callable[[dict[str, Any]], ModelConfig]
    config_to: Callable[[ModelConfig], dict[str, Any]]
    entries: Callable[[ModelConfig], list[Entry]]
    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()

    def own_name(self, name: str) -> str:
        """The family's own spelling of a tensor's name."""
        pattern, replacement = next(((p, r) for p, r in self.renames if re.search(p, name)), ("", ""))
        return re.sub(pattern, replacement, name) if pattern else name
