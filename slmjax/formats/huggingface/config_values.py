"""The two dialects of config.json, transformers 4's and 5's, where the families agree: numbers, activations, rope.

Both are written at once: a config of the one dialect alone is read by the other version with silent defaults.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from slmjax import untrusted
from slmjax.errors import UserError, shown
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.untrusted import MAX_LAYERS, MAX_SIZE

Values = dict[str, Any]
T = TypeVar("T")
# Keys of which null is a statement of its own.
NULLABLE = {"sliding_window", "num_key_value_heads", "head_dim", "layer_types", "no_rope_layers", "rope_scaling"}
NULLABLE |= {"rope_parameters", "tie_word_embeddings", "attn_logit_softcapping", "final_logit_softcapping"}

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def typed(values: Values) -> untrusted.Values:
    """The values of a config.json, read with bounds."""
    return untrusted.Values(values, "The config.json")


def integer(values: Values, key: str, *, most: int = MAX_SIZE) -> int:
    """A whole number from 0 to `most`; UserError naming the key otherwise."""
    return typed(values).integer(key, most=most)


def optional_integer(values: Values, key: str) -> int | None:
    """`integer`, or None where the key is absent or null."""
    return typed(values).integer(key, None)


def number(values: Values, key: str) -> float:
    """A finite number as float; UserError naming the key otherwise."""
    return typed(values).number(key)


def optional_number(values: Values, key: str) -> float | None:
    """`number`, or None where the key is absent or null."""
    return typed(values).number(key, None)


def flag(values: Values, key: str) -> bool:
    """True or false; null and absent are false."""
    return typed(values).flag(key)


def require(values: Values, **expected: Any) -> None:
    """UserError where a key is there and is not what the network can do."""
    typed(values).require(**expected)


def activation(values: Values, key: str) -> str:
    """Our name of an activation."""
    name = values.get(key)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"The config.json: {key} is {shown(name)}; choose one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def activation_name(config: ModelConfig) -> str:
    """transformers' name of an activation; "gelu_pytorch_tanh" for the tanh form."""
    return "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation


def sizes(values: Values) -> dict[str, Any]:
    """The fields of ModelConfig that most families spell alike, their keys filled in with the family's defaults.

    Reads vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
    head_dim, max_position_embeddings, tie_word_embeddings and initializer_range.
    """
    return {
        "vocab_size": integer(values, "vocab_size"),
        "num_layers": integer(values, "num_hidden_layers", most=MAX_LAYERS),
        "embed_dim": integer(values, "hidden_size"),
        "num_heads": integer(values, "num_attention_heads"),
        "num_kv_heads": optional_integer(values, "num_key_value_heads") or 0,
        "head_dim": optional_integer(values, "head_dim") or 0,
        "ffn_dim": integer(values, "intermediate_size"),
        "context_length": integer(values, "max_position_embeddings"),
        "tie_embeddings": flag(values, "tie_word_embeddings"),
        "init_std": optional_number(values, "initializer_range") or 0.02,
        "init_scale_residual": False,
    }


def sizes_to(config: ModelConfig) -> Values:
    """The inverse of `sizes`; layers of differing widths are beyond it."""
    for name in ("num_heads", "num_kv_heads", "ffn_dim"):
        if isinstance(getattr(config, name), tuple):
            raise UserError(f"model.{name} differs between layers, which this family cannot express.")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std or 0.02,
    }


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings of a config."""

    theta: float
    scaling: RopeScaling | None
    fraction: float

    def fields(self) -> dict[str, Any]:
        """The fields of ModelConfig that say the same."""
        return {"rope_theta": self.theta, "rope_scaling": self.scaling, "rope_fraction": self.fraction}


def rope_from(values: Values, *, theta: float = 10_000.0, fraction: float = 1.0, layer_type: str | None = None) -> Rope:
    """Rotary embeddings of a config: `rope_parameters` (5), else `rope_theta` and `rope_scaling` (4).

    theta, fraction: the family's defaults. layer_type: the key of parameters that are nested by kind of layer.
    As in transformers, a `rope_scaling` that is not null is the stronger word.
    """
    parameters = mapping(values, "rope_parameters")
    if layer_type is not None and (layer_type in parameters or "full_attention" in parameters):
        parameters = mapping(parameters, layer_type)
    table = {**parameters, **mapping(values, "rope_scaling")}
    for key, default in (("rope_theta", theta), ("partial_rotary_factor", fraction)):
        if table.get(key) is None:
            table[key] = values[key] if values.get(key) is not None else default
    return Rope(number(table, "rope_theta"), _scaling(table, values), number(table, "partial_rotary_factor"))


def mapping(values: Values, key: str) -> Values:
    """A nested object; empty where the key is absent or null."""
    return typed(values).table(key)


def _scaling(table: Values, values: Values) -> RopeScaling | None:
    kind = table.get("rope_type") or table.get("type") or "default"
    if kind == "default":
        return None
    if kind == "su" or (kind == "yarn" and "long_factor" in table):  # Phi-3's first names of longrope
        kind = "longrope"
    context = integer(values, "max_position_embeddings")
    original = optional_integer(values, "original_max_position_embeddings")
    original = original or optional_integer(table, "original_max_position_embeddings") or context
    factor = optional_number(table, "factor")
    attention_factor = optional_number(table, "attention_factor")
    if kind == "linear":
        return RopeScaling("linear", factor=number(table, "factor"))
    if kind == "dynamic":  # transformers counts from max_position_embeddings, whatever else is written
        return RopeScaling("dynamic", factor=number(table, "factor"), original_context_length=context)
    if kind == "llama3":
        low, high = number(table, "low_freq_factor"), number(table, "high_freq_factor")
        return RopeScaling("llama3", number(table, "factor"), original, low, high)
    if kind == "yarn":
        require(table, truncate=True)
        if table.get("mscale") and table.get("mscale_all_dim") and table["mscale"] != table["mscale_all_dim"]:
            raise UserError("The config.json: the rope's mscale and mscale_all_dim differ, which cannot be run here.")
        fast, slow = optional_number(table, "beta_fast") or 32.0, optional_number(table, "beta_slow") or 1.0
        if table.get("mscale") and table.get("mscale_all_dim"):
            attention_factor = 1.0 if attention_factor is None else attention_factor
        return RopeScaling(
            "yarn",
            factor=context / original if factor is None else factor,
            original_context_length=original,
            beta_fast=fast,
            beta_slow=slow,
            attention_factor=attention_factor,
        )
    if kind == "longrope":
        return RopeScaling(
            "longrope",
            factor=context / original if factor is None else factor,
            original_context_length=original,
            attention_factor=attention_factor,
            short_factor=typed(table).numbers("short_factor"),
            long_factor=typed(table).numbers("long_factor"),
        )
    raise UserError(f"The config.json: the rope's type {shown(kind)} is not known here.")


def rope_to(config: ModelConfig, *, partial: bool = False) -> Values:
    """Rotary embeddings in both dialects. partial: the family knows `partial_rotary_factor`."""
    table = scaling_to(config.rope_scaling, config.context_length)
    kind = "default" if config.rope_scaling is None else config.rope_scaling.kind
    parameters = {**(table or {}), "rope_type": kind, "rope_theta": config.rope_theta}
    written: Values = {"rope_theta": config.rope_theta, "rope_scaling": table, "rope_parameters": parameters}
    if partial:
        written["partial_rotary_factor"] = parameters["partial_rotary_factor"] = config.rope_fraction
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        # transformers 4 looks for it here alone.
        written["original_max_position_embeddings"] = config.rope_scaling.original_context_length
    return written


def scaling_to(scaling: RopeScaling | None, context_length: int) -> Values | None:
    """The table of `rope_scaling`; what `context_length` implies in both versions is left out."""
    if scaling is None:
        return None
    table: Values = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        table["original_max_position_embeddings"] = scaling.original_context_length
    if scaling.kind == "llama3":
        table |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        table |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.kind == "longrope":
        if scaling.factor == context_length / scaling.original_context_length:
            del table["factor"]
        table |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
        # Phi-3's check in transformers 4 counts the keys: type, short_factor, long_factor.
        table["type"] = table.pop("rope_type")
    if scaling.attention_factor is not None and scaling.kind in ("yarn", "longrope"):
        table["attention_factor"] = scaling.attention_factor
    return table


def with_defaults(
    values: Values, defaults: Values, *, spellings: Mapping[str, str] | None = None, nullable: Container[str] = NULLABLE
) -> Values:
    """A config over its family's defaults, under the usual keys where `spellings` maps the family's own to them.

    Null means the default, as does a key that is absent; of the `nullable` keys it means that there is none (no window,
    as many key/value heads as heads), whatever the default.
    """
    usual = {(spellings or {}).get(key, key): value for key, value in values.items()}
    given = {key: value for key, value in usual.items() if value is not None or key in nullable}
    return {**defaults, **given}


def spelled(values: Values, spellings: Mapping[str, str], **defaults: Any) -> Values:
    """`with_defaults` of families whose classes have a number by default wherever null could stand."""
    return with_defaults(values, defaults, spellings=spellings, nullable=())


def shape(vocab: int, hidden: int, ffn: int, layers: int, heads: int, positions: int) -> Values:
    """The sizes that a class of transformers has by default, which its config.json may leave out."""
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }


def spelled_back(values: Values, spellings: Mapping[str, str]) -> Values:
    """The inverse of `spelled`, without keys that only networks with grouped queries know."""
    own = {usual: theirs for theirs, usual in spellings.items()}
    return {own.get(key, key): v for key, v in values.items() if key not in ("num_key_value_heads", "head_dim")}


def shortest_period(kinds: Sequence[T]) -> tuple[T, ...]:
    """The shortest beginning of a list that gives the list when it is repeated, cut at its length."""
    sizes = range(1, len(kinds) + 1)
    return next((tuple(kinds[:n]) for n in sizes if all(kinds[i] == kinds[i % n] for i in range(len(kinds)))), ())


def layer_types(config: ModelConfig) -> list[str]:
    """transformers' name of each layer's kind of attention."""
    return ["full_attention" if spec.window is None else "sliding_attention" for spec in config.layers]


def window_fields(values: Values, types: Sequence[str]) -> dict[str, Any]:
    """`window` and `layer_pattern` of ModelConfig from `sliding_window` and `layer_types`, else the given types."""
    window = optional_integer(values, "sliding_window")
    types = types if values.get("layer_types") is None else typed(values).names("layer_types")
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise UserError(f"The config.json: layer_types names {shown(unknown.pop())}, which is not known here.")
    if len(types) != integer(values, "num_hidden_layers", most=MAX_LAYERS):
        raise UserError(f"The config.json: layer_types lists {len(types)} layers, not num_hidden_layers.")
    if window is None or "sliding_attention" not in types:
        return {}
    return {"window": window, "layer_pattern": tuple("local" if t == "sliding_attention" else "global" for t in types)}
