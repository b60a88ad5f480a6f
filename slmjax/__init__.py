"""slmjax: the small-language-model laboratory in JAX. Importing it is instant; jax is imported when it is needed."""

from importlib import import_module as _import_module
from typing import Any as _Any

from slmjax.errors import UserError
from slmjax.moved import install as _find_moved_modules

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "convert", "families", "generate", "inspect", "load", "save", "train"]

_LAZY = {
    "load": "slmjax.formats.models",
    "save": "slmjax.formats.models",
    "convert": "slmjax.formats.models",
    "inspect": "slmjax.formats.models",
    "generate": "slmjax.inference.generate",
    "families": "slmjax.models.families.registry",
    "train": "slmjax.recipes.train",
}

_find_moved_modules()


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'slmjax' has no attribute {name!r}")
    value = getattr(_import_module(_LAZY[name]), name)
    # `slmjax.generate` the function, also after the submodule of that name was imported.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
