"""Packages that only some formats need."""

import importlib
from pathlib import Path
from types import ModuleType

from slmjax.errors import UserError, one_line


def import_optional(module: str, what: Path | str) -> ModuleType:
    """The module, imported. UserError that says what needs it where its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{what} needs the package {package}, which cannot be imported ({one_line(error)}): install slmjax[data]."
        ) from error
