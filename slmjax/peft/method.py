"""A fine-tuning method as the training step needs it: what is trained, what is frozen, what the network sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

from slmjax.models.parameters import Params, abstract_params
from slmjax.models.transformer import Transformer
from slmjax.peft.anchors import Anchors
from slmjax.peft.config import PeftConfig
from slmjax.peft.methods import bottleneck, ia3, lora, prompts
from slmjax.peft.options import PLAIN, Options
from slmjax.peft.selection import ALL, Selection, select_frozen, select_named
from slmjax.quantization.weights import dequantized, quantized

Encode = Callable[[str], list[int]]


class Added(Protocol):
    """The part of a method that is added to the base."""

    @property
    def options(self) -> Options:
        """The settings that the arrays do not hold."""

    @property
    def changes_at_start(self) -> bool:
        """Whether the network computes something else than the base before the first step."""

    @property
    def rate_factors(self) -> Mapping[str, float]:
        """Factors on the learning rate, by the name of a leaf; what is not named has 1."""

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(what is trained, constants)."""

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """The collection `peft` that the network sees."""


@dataclass(frozen=True, eq=False)
class Method:
    """The division of a network into what is trained and what is frozen. The default trains all of it and adds nothing.

    Both are dicts with `params`, arrays of the base by their paths there, and `peft`, what is added (trained) and its
    constants (frozen); neither has a key for what it does not have. `frozen` may also hold `Anchors`.
    """

    selection: Selection = ALL  # of the base's arrays, those that are trained
    added: Added | None = None
    options: Options = PLAIN
    quantize: str = ""  # what the base's frozen weight products become: int8, int4, nf4
    layer_decay: float = 1.0
    anchors: Literal["", "start", "ewc"] = ""  # what `frozen` keeps of the start: see `anchor`

    @property
    def changes_at_start(self) -> bool:
        """Whether the network computes something else than the base before the first step."""
        return self.added is not None and self.added.changes_at_start

    def split(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(trained, frozen) at the start, from the base's parameters; key: of what is added."""
        wholly, rest = self.selection.split(base)
        if self.quantize:
            rest = quantized(rest, self.quantize)
            base = self.selection.join(wholly, dequantized(rest))  # what is added fits the base as it will be seen
        added, constants = self.added.init(base, key) if self.added else ({}, {})
        trained, frozen = _without_empty(added, wholly), _without_empty(constants, rest)
        if self.anchors:
            frozen = Anchors.at(trained, ewc=self.anchors == "ewc").put_into(frozen)
        return trained, frozen

    def parts(self, trained: Params, frozen: Params) -> dict[str, Params]:
        """{"params": the base's parameters as they are now, "peft": what is added}, the latter where there is any."""
        base = self.selection.join(trained.get("params", {}), frozen.get("params", {}))
        if self.added is None:
            return {"params": base}
        return {"params": base, "peft": self.added.collection(trained["peft"], frozen.get("peft", {}), base)}

    def variables(self, trained: Params, frozen: Params) -> dict[str, Params]:
        """The network's collections, `params` and `peft`, as `forward` takes them."""
        return change_tables(self.parts(trained, frozen))

    def base_params(self, trained: Params, frozen: Params) -> Params:
        """The parameters of the base as it was at the start, of an anchored method."""
        start = Anchors.of(frozen).start
        return self.parts(trained if start is None else trained | {"params": start}, frozen)["params"]

    def without_added(self) -> Method:
        """The same network without what is added to the base."""
        return dataclasses.replace(self, added=None, options=PLAIN)

    @property
    def scales_rates(self) -> bool:
        """Whether `multipliers` differ from 1."""
        return self.layer_decay < 1 or (self.added is not None and bool(self.added.rate_factors))

    def multipliers(self, trained: Params) -> Params:
        """A tree of factors on the learning rate of each trained array."""
        factors = {}
        if "peft" in trained:
            own = self.added.rate_factors if self.added else {}
            factors["peft"] = jax.tree_util.tree_map_with_path(
                lambda path, _: np.float32(own.get(path[-1].key, 1)), trained["peft"]
            )
        if "params" in trained:
            factors["params"] = self.selection.layer_factors(self.layer_decay, trained["params"])
        return factors


def make_method(config: PeftConfig, model: Transformer, encode: Encode | None = None) -> Method:
    """The method that a config names, for a network. UserError where its targets match nothing.

    encode: the tokenizer's, for soft prompts that start from a text.
    """
    network, shapes = model.config, abstract_params(model.config)
    added: Added | None = None
    match config.method:
        case "full":
            return Method(dataclasses.replace(ALL, network=network), layer_decay=config.layer_decay)
        case "freeze":
            selection = select_frozen(config, network, shapes)
        case _:
            selection = select_named(config.train, network, shapes)
    match config.method:
        case "lora":
            added = lora.plan(config.lora, network, shapes)
        case "adapter":
            added = bottleneck.plan(config.adapter, network)
        case "ia3":
            added = ia3.plan(config.ia3, network, shapes)
        case "prefix":
            added = prompts.Prefix(config.prefix, model, prompts.initial_ids(config.prefix, encode))
        case "prompt":
            added = prompts.Prompt(config.prompt, model, prompts.initial_ids(config.prompt, encode))
        case "p_tuning":
            added = prompts.PTuning(config.p_tuning, model)
    return Method(
        selection,
        added,
        added.options if added else PLAIN,
        quantize=config.quantize,
        layer_decay=config.layer_decay,
    )


def anchor(method: Method, *, ewc: bool) -> Method:
    """The method with the start of its base's weights in `frozen`; ewc: also what EWC needs."""
    return dataclasses.replace(method, anchors="ewc" if ewc else "start")


def change_tables(variables: dict[str, Params]) -> dict[str, Params]:
    """The variables with the tables' and the head's low-rank terms added to their weights, where they are used.

    The network's own modules do not compute these products: a table is looked up, and the loss multiplies the head. A
    tied head follows its table, so that a merged model is tied as the base is.
    """
    tables = [name for name in variables.get("peft", {}) if name in ("embedder", "position_embedder", "lm_head")]
    if not tables:
        return variables
    params, added = dict(variables["params"]), dict(variables["peft"])
    for module in tables:
        leaf = "kernel" if module == "lm_head" else "embedding"
        params[module] = params[module] | {leaf: lora.change_weight(params[module][leaf], added.pop(module))}
    return {"params": params, "peft": added}


def _without_empty(peft: Any, params: Any) -> Params:
    return {name: part for name, part in (("peft", peft), ("params", params)) if part}
