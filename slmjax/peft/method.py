"""A fine-tuning method as the training step needs it: what is trained, what is frozen, what the network sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig, PrefixConfig, PromptConfig
from slmjax.peft.interception import NOTHING_MORE, Options
from slmjax.peft.methods import bottleneck, ia3, lora, prompts
from slmjax.peft.methods.freezing import chosen_by, joined, layer_factors, partition
from slmjax.peft.targets import arrays_of, choose
from slmjax.quantization.weights import dequantized, quantized

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Method:
    """`split(base, key)` gives (trained, frozen), `parts(trained, frozen)` the base and what is added to it.

    Of the full method, `trained` is the base's own tree. Otherwise it is {"peft": what is added, "params": the part of
    the base that is trained} and `frozen` the same with the rest; both without what they do not have.
    """

    options: Options
    split: Callable[[Any, jax.Array], tuple[Any, Any]]
    parts: Callable[[Any, Any], dict[str, Any]]
    multipliers: Callable[[Any], Any] | None = None  # trained -> a tree of factors on each array's learning rate
    whole: bool = False  # the full method's: `trained` is the base's own tree

    def variables(self, trained: Any, frozen: Any) -> dict[str, Any]:
        """The network's collections, `params` and `peft`, as `interception.applied` takes them."""
        return in_weights(self.parts(trained, frozen))


@dataclass(frozen=True)
class _Added:
    """What a method adds to the base."""

    init: Callable[[Any, jax.Array], tuple[Any, Any]]  # (base, key) -> (trained, constants)
    collection: Callable[[Any, Any, Any], Any]  # (trained, constants, base) -> what the network sees
    options: Options = NOTHING_MORE
    multipliers: Callable[[Any], Any] | None = None


def full() -> Method:
    """Everything is trained."""
    return Method(NOTHING_MORE, lambda base, key: (base, {}), lambda trained, frozen: {"params": trained}, whole=True)


def make_method(config: PeftConfig, model: Transformer, encode: Encode | None = None) -> Method:
    """The method that a config names, for a network. UserError where its targets match nothing.

    encode: the tokenizer's, for soft prompts that start from a text.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    network, decay = model.config, config.layer_decay
    arrays = arrays_of(network, shapes)
    if config.method == "full":
        decayed = (lambda trained: layer_factors(network, decay, trained, arrays, {})) if decay < 1 else None
        return dataclasses.replace(full(), multipliers=decayed)
    if config.method == "freeze":
        chosen, added = chosen_by(config.freeze, network, shapes, config.new_layers), None
    else:
        chosen = choose(arrays, config.train, where="peft.train") if config.train else {}
        added = _added(config, model, shapes, encode)

    def split(base, key):
        wholly, rest = partition(base, arrays, chosen)
        if config.quantize:
            rest = quantized(rest, config.quantize)
            base = joined(wholly, dequantized(rest), chosen)  # what is added fits the base as it will be seen
        trained, constants = added.init(base, key) if added else ({}, {})
        return _without_empty(trained, wholly), _without_empty(constants, rest)

    def parts(trained, frozen):
        base = joined(trained.get("params", {}), frozen.get("params", {}), chosen)
        if added is None:
            return {"params": base}
        return {"params": base, "peft": added.collection(trained["peft"], frozen.get("peft", {}), base)}

    def multipliers(trained):
        factors = {}
        if "peft" in trained:
            ones = lambda tree: jax.tree.map(lambda _: np.float32(1), tree)  # noqa: E731
            factors["peft"] = (added.multipliers if added and added.multipliers else ones)(trained["peft"])
        if "params" in trained:
            factors["params"] = layer_factors(network, decay, trained["params"], arrays, chosen)
        return factors

    plain = decay == 1 and not (added and added.multipliers)
    return Method(added.options if added else NOTHING_MORE, split, parts, None if plain else multipliers)


def _added(config: PeftConfig, model: Transformer, shapes: Any, encode: Encode | None) -> _Added:
    network = model.config
    match config.method:
        case "lora":
            adapted = lora.plan(config.lora, network, shapes)
            ratio = config.lora.plus_ratio

            def factors(trained):
                return jax.tree_util.tree_map_with_path(
                    lambda path, _: np.float32(ratio if path[-1].key == "lora_b" else 1), trained
                )

            return _Added(
                lambda base, key: lora.init(config.lora, adapted, base, key),
                lambda trained, constants, base: lora.collection(adapted, trained, constants),
                Options(dropout=config.lora.dropout),
                factors if ratio != 1 else None,
            )
        case "adapter":
            adapter = config.adapter
            return _Added(
                lambda base, key: (bottleneck.init(adapter, network, key), {}),
                lambda trained, constants, base: trained,
                Options(activation=adapter.activation, scale=adapter.scale, parallel=adapter.kind == "parallel"),
            )
        case "ia3":
            ia3.init(config.ia3, network, shapes)  # its mistakes show now, not under jit
            return _Added(
                lambda base, key: (ia3.init(config.ia3, network, base), {}),
                lambda trained, constants, base: trained,
            )
        case "prefix":
            ids = _ids(config.prefix, encode)
            return _Added(
                lambda base, key: (prompts.init_prefix(config.prefix, model, base, ids, key), {}),
                lambda trained, constants, base: prompts.prefix_collection(config.prefix, network, trained),
            )
        case "prompt":
            ids = _ids(config.prompt, encode)
            return _Added(
                lambda base, key: (prompts.init_prompt(config.prompt, network, base, ids, key), {}),
                lambda trained, constants, base: prompts.keys_and_values(model, base, prompts.prompt_of(trained)),
            )
        case "p_tuning":
            return _Added(
                lambda base, key: (prompts.init_p_tuning(config.p_tuning, network, key), {}),
                lambda trained, constants, base: prompts.keys_and_values(model, base, prompts.prompt_of(trained)),
            )
    raise AssertionError(config.method)


def _ids(config: PrefixConfig | PromptConfig, encode: Encode | None) -> np.ndarray | None:
    if config.init != "text":
        return None
    if encode is None:
        raise UserError("peft: a soft prompt that starts from init_text needs the tokenizer.")
    return prompts.tile_ids(encode(config.init_text), config.num_tokens)


def _without_empty(peft: Any, params: Any) -> dict[str, Any]:
    return {name: part for name, part in (("peft", peft), ("params", params)) if part}


def in_weights(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables with the tables' and the head's low-rank terms added to their weights, where they are used.

    These are no products of the network's own modules: a table is looked up and the loss multiplies the head. A tied
    head follows its table, so that a merged model is tied as the base is.
    """
    tables = [name for name in variables.get("peft", {}) if name in ("embedder", "position_embedder", "lm_head")]
    if not tables:
        return variables
    params, added = dict(variables["params"]), dict(variables["peft"])
    for module in tables:
        leaf = "kernel" if module == "lm_head" else "embedding"
        params[module] = params[module] | {leaf: lora.changed_weight(params[module][leaf], added.pop(module))}
    return {"params": params, "peft": added}
