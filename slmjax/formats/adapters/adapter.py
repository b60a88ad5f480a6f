"""A fine-tune apart from its base, whichever file it came from, and the model that the two make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.formats.weight_map import cast_params
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import abstract_leaves, flatten, resized, unflatten
from slmjax.peft.config import MERGEABLE
from slmjax.peft.merging import merge as merge_added
from slmjax.peft.method import change_tables
from slmjax.peft.options import PLAIN, Options


@dataclass(frozen=True)
class Adapter:
    """A fine-tune without its base: a collection that is added, and arrays of the base that are replaced."""

    method: str  # of PeftConfig
    added: Any  # the collection `peft`, float32, as `forward.forward` takes it
    options: Options = PLAIN
    whole: Mapping[str, Any] = field(default_factory=dict)  # path -> an array of the base that was trained wholly
    prompt: Any = None  # float32 [n, E], the input vectors that a prefix came from
    network: ModelConfig | None = None  # that the adapter makes of its base: more tokens, biases, a head of its own
    unties: bool = False  # the head and the table go different ways, though the base ties them
    rslora: bool = False  # say scales as alpha / sqrt(r)


def parameters_under(adapter: Adapter, config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """(config, params) of the base with the arrays that the adapter replaces, before anything is added."""
    flat = flatten(params)
    if adapter.network is not None and adapter.network != config:
        config = adapter.network
        flat = {path: jnp.asarray(array) for path, array in resized(flat, abstract_leaves(config)).items()}
    if adapter.unties and config.tie_embeddings:
        config = replace(config, tie_embeddings=False)
        flat["lm_head/kernel"] = flat["embedder/embedding"].T
    for path, array in adapter.whole.items():
        flat[path] = jnp.asarray(array).astype(flat[path].dtype)
    return config, unflatten(flat)


def attached(
    base: LanguageModel, adapter: Adapter, *, dtype: str | None = None, merge: bool = True, path: str = ""
) -> LanguageModel:
    """The base with the adapter: merged into its weights where they can express it, else (or unasked) beside them.

    dtype: of the parameters; None is float32 of what is merged. The base should be float32, since the change of a
    weight is small against its rounding.
    """
    config, params = parameters_under(adapter, base.config, base.params)
    added, options = adapter.added, adapter.options
    if merge and adapter.method in MERGEABLE:
        params, added, options = merge_added(params, added), {}, PLAIN
    else:
        variables = change_tables({"params": params, "peft": added})
        params, added = variables["params"], variables["peft"]
    if dtype is not None:
        params = cast_params(params, dtype)
    return replace(base, config=config, params=params, peft=added, options=options, path=path or base.path)


def require_plain_positions(config: ModelConfig, what: str) -> None:
    """UserError where peft's virtual tokens and our prefix are not the same thing.

    Ours is seen from everywhere and has no distance; peft's stands in the cache like any text.
    """
    windows = [spec.window for spec in config.layers if spec.window is not None]
    if config.position == "alibi":
        raise UserError(f"{what}: under ALiBi peft's virtual tokens have distances and ours have none: they differ.")
    if windows and min(windows) < config.context_length:
        raise UserError(
            f"{what}: attention has a window of {min(windows)} here, which peft's virtual tokens leave and ours never "
            "do: they differ."
        )
    if config.block_repeats > 1:
        raise UserError(f"{what}: a network that runs its blocks several times has no single prefix.")


def require_plain_inputs(config: ModelConfig, model_type: str, what: str) -> None:
    """UserError where releases of transformers disagree on whether input vectors are scaled as the table's rows are."""
    # Granite scales whatever enters; Gemma did so until its table took the factor over.
    if config.embedding_multiplier != 1.0 and model_type != "granite":
        raise UserError(
            f"{what}: {model_type} multiplies its embeddings by {config.embedding_multiplier:.4g}, and releases of "
            "transformers differ in whether virtual tokens are multiplied too."
        )
