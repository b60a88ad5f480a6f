"""A fine-tuning method as the training step needs it: what is trained, what is frozen, what the network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.peft import lora
from slmjax.peft.config import PeftConfig
from slmjax.peft.freezing import joined, partition
from slmjax.peft.interception import Options
from slmjax.peft.targets import arrays_of, choose, flatten, nested

Split = Callable[[Any, jax.Array], tuple[Any, Any]]
Variables = Callable[[Any, Any], dict[str, Any]]
Multipliers = Callable[[Any], Any]


@dataclass(frozen=True)
class Method:
    """`split(base, key)` gives (trained, frozen), `variables(trained, frozen)` the network's collections.

    Of the full method, `trained` is the base's own tree. Otherwise it is {"peft": what is added, "params": the part of
    the base that is trained} and `frozen` the same with the rest; both without what they do not have.
    """

    options: Options
    split: Split
    variables: Variables
    multipliers: Multipliers | None = None  # trained -> a tree of factors on each array's learning rate


def full() -> Method:
    """Everything is trained."""
    return Method(Options(), lambda base, key: (base, {}), lambda trained, frozen: {"params": trained})


def make_method(config: PeftConfig, model: Transformer) -> Method:
    """The method that a config names, for a network. UserError where its targets match nothing."""
    if config.method == "full":
        return full()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return _lora(config, model.config, shapes)


def _lora(config: PeftConfig, model: ModelConfig, shapes: Any) -> Method:
    adapted = lora.plan(config.lora, model, shapes)
    cut, whole = _base_parts(config, model, shapes)

    def split(base, key):
        trained, constants = lora.init(config.lora, adapted, base, key)
        wholly, rest = cut(base)
        return _parts(trained, wholly), _parts(constants, rest)

    def variables(trained, frozen):
        added = lora.collection(adapted, trained["peft"], frozen.get("peft", {}))
        return in_weights({"params": whole(trained, frozen), "peft": added})

    def multipliers(trained):
        def factor(path, _):
            return config.lora.plus_ratio if path[-1].key == "lora_b" else 1.0

        return jax.tree_util.tree_map_with_path(factor, trained)

    ratio = config.lora.plus_ratio
    return Method(Options(dropout=config.lora.dropout), split, variables, multipliers if ratio != 1.0 else None)


def _base_parts(config: PeftConfig, model: ModelConfig, shapes: Any) -> tuple[Callable, Callable]:
    """(base -> (trained wholly, rest), (trained, frozen) -> base) for the arrays of `peft.train`."""
    arrays = arrays_of(model, shapes)
    chosen = choose(arrays, config.train, where="peft.train") if config.train else {}
    return (
        lambda base: partition(base, arrays, chosen),
        lambda trained, frozen: joined(trained.get("params", {}), frozen["params"], chosen),
    )


def _parts(peft: Any, params: Any) -> dict[str, Any]:
    return {name: part for name, part in (("peft", peft), ("params", params)) if part}


def in_weights(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables with the tables' and the head's low-rank terms added to their weights, where they are used.

    These are no products of the network's own modules: a table is looked up and the loss multiplies the head. A tied
    head follows its table, so that a merged model is tied as the base is.
    """
    params, added = dict(variables["params"]), dict(variables["peft"])
    for module in [name for name in added if name in ("embedder", "position_embedder", "lm_head")]:
        leaf = "kernel" if module == "lm_head" else "embedding"
        params[module] = params[module] | {leaf: lora.changed_weight(params[module][leaf], added.pop(module))}
    return {"params": params, "peft": added}
