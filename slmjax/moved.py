"""Modules that moved, found by the names that they had in 0.1, so that scripts and config files go on working."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

# The old name, and the modules that its names are looked up in, in order; all below `slmjax.`.
MOVED = {
    "cli.sampling_arguments": "cli.shared.sampling_arguments",
    "data.examples": "data.conversations.examples data.conversations.encoding",
    "evaluation.choices": "evaluation.tasks.choices",
    "evaluation.loglikelihood": "evaluation.tasks.choices",
    "evaluation.pubmedqa": "evaluation.tasks.pubmedqa",
    "evaluation.text_to_sql": "evaluation.tasks.text_to_sql.task",
    "formats.adapterhub": "formats.adapters.adapterhub",
    "formats.gguf_file": "formats.gguf.file",
    "formats.gguf_blocks": "formats.gguf.blocks",
    "formats.gguf_pretokenizers": "formats.gguf.pretokenizers",
    "formats.gguf_tokenizer": "formats.gguf.tokenizer",
    "formats.huggingface_families": "formats.huggingface.families",
    "formats.huggingface_tokenizer": "formats.huggingface.tokenizer",
    "formats.hub": "formats.huggingface.hub",
    "formats.model_card": "formats.huggingface.model_card",
    "formats.peft_adapter": "formats.adapters.adapter",
    "formats.peft_config": "formats.peft.config",
    "formats.sentencepiece_proto": "tokenization.sentencepiece_proto",
    "models.layers_apart": "models.unstacked",
    "objectives.held_to_base": "objectives.regularized",
    "peft.base": "peft.fingerprint",
    "peft.expansion": "peft.methods.expansion",
    "peft.ia3": "peft.methods.ia3",
    "peft.interception": "peft.forward",
    "peft.lora": "peft.methods.lora",
    "training.branching": "recipes.branching",
    "training.corpus": "recipes.corpus",
    "training.early_stopping": "recipes.observers.early_stopping",
    "training.finetuned": "inference.finetuned",
    "training.fisher": "recipes.fisher",
    "training.forgetting": "recipes.observers.forgetting",
    "training.forgetting_config": "recipes.forgetting_config",
    "training.interpolation": "recipes.interpolation",
    "training.meter": "training.reporting.meter",
    "training.metrics": "training.reporting.metrics",
    "training.plots": "recipes.observers.plots",
    "training.progress": "training.reporting.progress",
    "training.quickstart_config": "recipes.quickstart_config",
    "training.samples": "recipes.observers.samples",
}


def names_of(*modules: str, only: Collection[str] | None = None) -> Callable[[str], Any]:
    """A `__getattr__` for a module or a room: the public names of these modules, imported when they are asked for.

    only: a room's own modules are asked for in the same way, so it lists the names that it takes from elsewhere.
    """

    def look_up(name: str) -> Any:
        for module in modules if not name.startswith("_") and (only is None or name in only) else ():
            if hasattr(found := import_module(module), name):
                return getattr(found, name)
        raise AttributeError(f"neither this module nor {' or '.join(modules)} has an attribute {name!r}")

    return look_up


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module by its old name and warns of it; it stands last in `sys.meta_path`, after what is really there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for the old names, and None for all others."""
        if fullname.removeprefix("slmjax.") not in MOVED or not fullname.startswith("slmjax."):
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Let the module look its names up where they are now."""
        homes = [f"slmjax.{name}" for name in MOVED[module.__name__.removeprefix("slmjax.")].split()]
        warnings.warn(f"{module.__name__} moved to {homes[0]}: import it from there.", DeprecationWarning, stacklevel=2)

        vars(module)["__getattr__"] = names_of(*homes)


def install() -> None:
    """Have moved modules found, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
