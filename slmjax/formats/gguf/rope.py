"""Rotary scaling in GGUF: keys under rope.scaling, and tensors of one divisor for each frequency.

Llama 3's scaling is written as the divisors alone (rope_freqs), so that its parameters are solved for on reading.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from slmjax.formats.gguf.keys import Keys
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.models.positions import llama3_smoothing

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FREQS, LONG, SHORT)  # no weights of the network
ReadTensor = Callable[[str], np.ndarray | None]
_LOW, _HIGH = 1.0, 4.0  # low_freq_factor and high_freq_factor of every Llama 3 that was released


def scaling_from(keys: Keys, context_length: int, theta: float, dim: int, read: ReadTensor) -> RopeScaling | None:
    """The scaling of a file for `dim` rotated dimensions; `read` gives a tensor of the file, None where it is not."""
    kind = keys.text("rope.scaling.type", "linear")
    original = keys.integer("rope.scaling.original_context_length", 0) or context_length
    long, short = _divisors(keys, read, LONG, dim), _divisors(keys, read, SHORT, dim)
    if long is not None and short is not None:
        scaling = RopeScaling(
            "longrope",
            factor=context_length / original,
            original_context_length=original,
            short_factor=tuple(short.tolist()),
            long_factor=tuple(long.tolist()),
        )
        given = keys.number("rope.scaling.attn_factor", None)
        if given is None or math.isclose(given, scaling.magnitude, rel_tol=1e-6):
            return scaling
        return dataclasses.replace(scaling, attention_factor=given)
    divisors = _divisors(keys, read, FREQS, dim)
    if divisors is not None and not np.allclose(divisors, 1.0):
        return _llama3_of(keys, divisors, theta, dim)
    factor = keys.number("rope.scaling.factor", 1.0) or 1.0
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise keys.error("rope.scaling.type", f"is {kind!r}: none, linear, yarn and longrope with its tensors are read")
    fast, slow = keys.number("rope.scaling.yarn_beta_fast", 32.0), keys.number("rope.scaling.yarn_beta_slow", 1.0)
    scaling = RopeScaling("yarn", factor, original, beta_fast=fast, beta_slow=slow)
    # 1, on top of YaRN's own; or all of it, as files that were converted from Hugging Face's OLMo-3 have it.
    given = keys.number("rope.scaling.attn_factor", 1.0)
    if given != 1.0 and not math.isclose(given, scaling.magnitude, rel_tol=1e-6):
        raise keys.error("rope.scaling.attn_factor", "is not 1, which is not supported with yarn")
    return scaling


def scaling_to(config: ModelConfig, arch: str, kinds: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Keys and tensors for a config's scaling, none where `kinds` has it not (reading then shows the difference)."""
    s, prefix = config.rope_scaling, f"{arch}.rope.scaling"
    if s is None or s.kind not in kinds:
        return {}, {}
    if s.kind == "llama3":
        return {}, {FREQS: _llama3_divisors(s, config.rope_theta, config.rotary_dim)}
    keys: dict[str, Any] = {f"{prefix}.type": s.kind}
    if s.kind == "longrope":  # without a factor, which llama.cpp would apply to every frequency
        keys[f"{prefix}.original_context_length"] = s.original_context_length
        keys[f"{prefix}.attn_factor"] = float(s.magnitude)
        return keys, {LONG: np.array(s.long_factor, np.float32), SHORT: np.array(s.short_factor, np.float32)}
    keys[f"{prefix}.factor"] = float(s.factor)
    if s.kind == "yarn":
        keys[f"{prefix}.original_context_length"] = s.original_context_length
        if (s.beta_fast, s.beta_slow) != (32.0, 1.0):
            keys |= {f"{prefix}.yarn_beta_fast": float(s.beta_fast), f"{prefix}.yarn_beta_slow": float(s.beta_slow)}
    return keys, {}


def _divisors(keys: Keys, read: ReadTensor, name: str, dim: int) -> np.ndarray | None:
    values = read(name)
    if values is None:
        return None
    if values.shape != (dim // 2,) or not (np.isfinite(values) & (values > 0)).all():
        raise keys.error("rope.dimension_count", f"asks for {dim // 2} numbers above 0 in {name}, which are not there")
    return np.array([float(str(v)) for v in values.astype(np.float32)])


def _wavelengths(theta: float, dim: int) -> np.ndarray:
    return 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)


def _llama3_divisors(s: RopeScaling, theta: float, dim: int) -> np.ndarray:
    """What Llama 3.1 divides each frequency by: 1 for short waves, the factor for long ones."""
    smooth = llama3_smoothing(_wavelengths(theta, dim), s)
    return (1 / ((1 - smooth) / s.factor + smooth)).astype(np.float32)


def _llama3_of(keys: Keys, divisors: np.ndarray, theta: float, dim: int) -> RopeScaling:
    """The factor is the largest divisor; a divisor between 1 and it gives the original context length."""
    factor = float(divisors.max())
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    middle = int(np.abs(smooth - 0.5).argmin())
    solved = (smooth[middle] * (_HIGH - _LOW) + _LOW) * _wavelengths(theta, dim)[middle]
    for original in (round(solved), *(1 << k for k in range(1, 24))):
        s = RopeScaling("llama3", factor, max(original, 1), low_freq_factor=_LOW, high_freq_factor=_HIGH)
        if np.allclose(_llama3_divisors(s, theta, dim), divisors, rtol=1e-4):
            return s
    raise keys.error("rope.freq_base", f"and {FREQS} fit no scaling of Llama 3's kind")
