"""Checks of a model's settings. A mistake is a UserError with the key, the number and the way out."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import TYPE_CHECKING, Any

from slmjax.errors import UserError
from slmjax.models.activations import ACTIVATIONS

if TYPE_CHECKING:
    from slmjax.models.config import ModelConfig, RopeScaling

CHOICES = {
    "norm": ("rms", "layer"),
    "norm_placement": ("pre", "output", "sandwich", "post"),
    "position": ("rope", "learned", "alibi", "none"),
    "activation": tuple(ACTIVATIONS),
    "qk_norm": ("none", "head", "full", "heads"),
}
ROPE_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")

_SCALING_NUMBERS = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")

# field -> smallest whole number
WHOLE_NUMBERS = {
    "vocab_size": 1,
    "num_layers": 1,
    "embed_dim": 1,
    "head_dim": 1,
    "context_length": 1,
    "block_repeats": 1,
    "position_offset": 0,
    "embedding_projection_dim": 0,  # 0: as None
}
PER_LAYER = ("num_heads", "num_kv_heads", "ffn_dim")  # whole numbers from 1, one or one a layer
OPTIONAL = {  # None: not there, or a default that other fields decide
    "attention_scale",
    "attention_softcap",
    "clip_qkv",
    "rope_theta_local",
    "embedding_projection_dim",
    "logit_softcap",
    "init_std",
}
POSITIVE = (
    "attention_scale",
    "attention_softcap",
    "clip_qkv",
    "rope_theta",
    "rope_theta_local",
    "logit_divisor",
    "logit_softcap",
    "alibi_max_bias",
)
NOT_NEGATIVE = ("norm_eps", "init_std")
FINITE = ("embedding_multiplier", "residual_multiplier")


def check_model(config: ModelConfig) -> None:
    """UserError for the first setting that is not possible."""
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            raise UserError(f"model.{name}={getattr(config, name)!r} is not known: choose one of {', '.join(known)}.")
    for name, least in WHOLE_NUMBERS.items():
        if not (name in OPTIONAL and getattr(config, name) is None):
            _require_whole(f"model.{name}", getattr(config, name), least)
    for name in PER_LAYER:
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != config.num_layers:
            raise UserError(
                f"model.{name} lists {len(value)} layers but model.num_layers={config.num_layers}: "
                "give one number for all layers or one for each."
            )
        for number in value if isinstance(value, tuple) else (value,):
            _require_whole(f"model.{name}", number, 1, shown=value)
    for names, is_possible, bound in (
        (("rope_theta", "rope_theta_local"), lambda x: x > 0, "above 0 (every loss is NaN otherwise)"),
        (POSITIVE, lambda x: x > 0, "above 0"),
        (NOT_NEGATIVE, lambda x: x >= 0, "at least 0"),
        (FINITE, math.isfinite, "finite"),
        (("rope_fraction",), lambda x: 0 < x <= 1, "above 0 and at most 1"),
    ):
        for name in names:
            if not (name in OPTIONAL and getattr(config, name) is None):
                _require_number(f"model.{name}", getattr(config, name), is_possible, bound)
    for field in dataclasses.fields(config):
        if isinstance(field.default, bool) and not isinstance(getattr(config, field.name), bool):
            raise UserError(f"model.{field.name}={getattr(config, field.name)!r} must be true or false.")
    _check_layers(config)
    _check_positions(config)
    if config.qk_norm_after_rope and config.qk_norm != "head":
        raise UserError(
            f"model.qk_norm_after_rope=True with model.qk_norm={config.qk_norm!r}: set model.qk_norm='head'."
        )
    if config.shared_norm and not config.parallel_residual:
        raise UserError("model.shared_norm=True needs model.parallel_residual=True.")
    if config.parallel_residual and config.norm_placement != "pre":
        raise UserError("model.parallel_residual=True needs model.norm_placement='pre'.")


def _check_layers(config: ModelConfig) -> None:
    if config.window is not None:
        _require_whole("model.window", config.window, 0)
    pattern = config.layer_pattern
    if not isinstance(pattern, tuple) or not pattern or not all(kind in ("local", "global") for kind in pattern):
        raise UserError(
            f"model.layer_pattern={config.layer_pattern} must list 'local' and 'global', at least one of them."
        )
    if not isinstance(config.rope_pattern, tuple) or not config.rope_pattern:
        raise UserError("model.rope_pattern=() must list true and false, at least one of them.")
    if not all(isinstance(rotates, bool) for rotates in config.rope_pattern):
        raise UserError(f"model.rope_pattern={config.rope_pattern!r} must list true and false.")
    for i, spec in enumerate(config.layers):
        if spec.num_heads % spec.num_kv_heads:
            raise UserError(
                f"model.num_heads={spec.num_heads} is not a multiple of model.num_kv_heads={spec.num_kv_heads} "
                f"(layer {i}): each key/value head must serve the same number of query heads."
            )
    if "local" in config.layer_pattern and not (config.window and config.window > 0):
        raise UserError(
            f"model.window={config.window} with local layers in model.layer_pattern: "
            "set model.window to a number of tokens above 0."
        )


def _check_positions(config: ModelConfig) -> None:
    if config.position == "rope" and (config.rotary_dim % 2 or not config.rotary_dim):
        raise UserError(
            f"model.rope_fraction={config.rope_fraction} of model.head_dim={config.head_dim} is {config.rotary_dim}: "
            "rotary embeddings need an even number of dimensions."
        )
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(getattr(scaling, name)) != config.rotary_dim // 2:
                raise UserError(
                    f"model.rope_scaling.{name} lists {len(getattr(scaling, name))} numbers: "
                    f"it needs {config.rotary_dim // 2}, one for each pair of rotated dimensions."
                )


def check_rope_scaling(scaling: RopeScaling) -> None:
    """UserError for the first setting of `RopeScaling` that is not possible."""
    if scaling.kind not in ROPE_SCALINGS:
        raise UserError(
            f"model.rope_scaling.kind={scaling.kind!r} is not known: choose one of {', '.join(ROPE_SCALINGS)}."
        )
    for name in ("factor", "original_context_length", *_SCALING_NUMBERS):
        _require_number(f"model.rope_scaling.{name}", getattr(scaling, name), lambda x: True, "finite")
    if scaling.attention_factor is not None:
        _require_number("model.rope_scaling.attention_factor", scaling.attention_factor, lambda x: True, "finite")
    for name in ("short_factor", "long_factor"):
        values = getattr(scaling, name)
        if not isinstance(values, list | tuple):
            raise UserError(f"model.rope_scaling.{name}={values!r} must be a list of numbers.")
        for value in values:
            _require_number(f"model.rope_scaling.{name}", value, lambda x: x > 0, "above 0")
    least = 1 if scaling.kind == "longrope" else 0  # whose formula divides by the logarithm
    if scaling.kind != "linear" and scaling.original_context_length <= least:
        raise UserError(
            f"model.rope_scaling.original_context_length={scaling.original_context_length} must be above {least} "
            f"for kind={scaling.kind!r}."
        )
    if scaling.factor <= 0:
        raise UserError(f"model.rope_scaling.factor={scaling.factor} must be above 0.")
    if scaling.kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise UserError(
            f"model.rope_scaling.low_freq_factor={scaling.low_freq_factor} must be below "
            f"high_freq_factor={scaling.high_freq_factor}."
        )


def _require_whole(key: str, value: Any, least: int, shown: Any = None) -> None:
    shown = value if shown is None else shown
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{key}={shown!r} must be a whole number of at least {least}.")
    if value < least:
        raise UserError(f"{key}={shown!r} must be at least {least}.")


def _require_number(key: str, value: Any, is_possible: Any, bound: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{key}={value!r} must be a number.")
    if not is_possible(value) or not math.isfinite(value):
        raise UserError(f"{key}={value!r} must be {bound}.")
