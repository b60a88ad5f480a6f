"""GGUF's metadata and our ModelConfig, both ways, and which architecture expresses which network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmjax.errors import UserError, did_you_mean, shown
from slmjax.formats.gguf import rope as gguf_rope
from slmjax.formats.gguf.archs import ARCHS, BY_NAME, Arch
from slmjax.formats.gguf.keys import Keys
from slmjax.formats.gguf.tensors import entries
from slmjax.formats.unreadable import why_unreadable
from slmjax.formats.weight_map import Entry
from slmjax.models.config import ModelConfig, rope_fraction
from slmjax.untrusted import MAX_LAYERS

# Where a network rounds is not its function, and a file's numbers are float32.
ROUNDING = ("norm_scale_float32",)
_BIAS_OF = {
    "qkv_bias": ("attn_q.bias", "attn_qkv.bias"),
    "attention_output_bias": ("attn_output.bias",),
    "ffn_bias": ("ffn_up.bias",),
}
_SCALE_KEYS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logit_divisor": "logit_scale",
    "attention_scale": "attention.scale",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "clip_qkv": "attention.clamp_kqv",
    "alibi_max_bias": "attention.max_alibi_bias",
}


@dataclass(frozen=True)
class GgufModel:
    """A network as a file holds it: `metadata` of its architecture, `entries` of its weights, and `constants`, tensors
    that are no weights (rotary divisors)."""

    metadata: dict[str, Any]
    entries: list[Entry]
    constants: dict[str, np.ndarray]


def config_from(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], read: gguf_rope.ReadTensor, where: str
) -> ModelConfig:
    """The network of a file: from its metadata and from which tensors it has.

    Raises:
        UserError: an architecture that is not known (the nearest are named), a key that is missing or makes no sense.
    """
    arch = _arch_of(metadata, where)
    keys = Keys(metadata, arch.name, where)
    if keys.integer("expert_count", 0):
        raise keys.error("expert_count", "is above 0: mixtures of experts are not supported")
    layers = keys.required("block_count")
    if layers > MAX_LAYERS or layers > len(shapes):
        raise keys.error("block_count", f"is {layers}, more than the file holds or any model has")
    table = shapes.get("token_embd.weight", ())
    if len(table) != 2:
        raise UserError(f"{where} has no token_embd.weight of two dimensions: it holds no language model.")
    dim = keys.required("embedding_length")
    heads = keys.per_layer("attention.head_count", None, layers)
    first_heads = heads if isinstance(heads, int) else heads[0]
    values: dict[str, Any] = {
        **arch.switches,
        "vocab_size": table[0],
        "num_layers": layers,
        "embed_dim": dim,
        "num_heads": heads,
        "num_kv_heads": keys.per_layer("attention.head_count_kv", heads, layers),
        "head_dim": keys.integer("attention.key_length", max(dim // first_heads, 1), least=1),
        "ffn_dim": keys.per_layer("feed_forward_length", 4 * dim, layers),
        "context_length": keys.integer("context_length", 2048, least=1),
        "norm_eps": keys.number(_eps_key(arch), 1e-5),
        "tie_embeddings": {"never": True, "required": False}.get(arch.head, "output.weight" not in shapes),
    }
    if keys.integer("attention.value_length", values["head_dim"]) != values["head_dim"]:
        raise keys.error("attention.value_length", "differs from attention.key_length, which is not supported")
    for name in arch.optional_biases:
        values[name] = any(f"blk.0.{tensor}" in shapes for tensor in _BIAS_OF[name])
    values |= _scales(keys, arch, dim, layers) | _parallel(keys, arch, shapes) | _windows(keys, arch, layers)
    try:
        if arch.switches.get("position", "rope") == "rope":
            values |= _rope(keys, arch, values, read)
        return ModelConfig(**values)
    except (UserError, TypeError, ValueError, ArithmeticError) as error:
        if where in str(error):
            raise
        raise UserError(
            f"{where} describes a network that this version cannot read ({str(error).rstrip('.')})."
        ) from error


def config_to(config: ModelConfig) -> GgufModel:
    """The network as the architecture that expresses it exactly writes it.

    Raises:
        UserError: no architecture of GGUF does; it names the nearest and the switches that this one cannot express.
    """
    shortest: list[str] = []
    nearest = ""
    layered = any(isinstance(n, tuple) for n in (config.num_heads, config.num_kv_heads, config.ffn_dim))
    for arch in (a for a in ARCHS if (a.per_layer or not layered) and a.kv_heads in (0, config.num_kv_heads)):
        try:
            model = written_as(config, arch)
            wrong = list(config.differences(read_back(config, model), ignore=ROUNDING, rel_tol=1e-6))
        except UserError:  # the architecture has no place for the network at all
            continue
        if not wrong:
            return model
        if not nearest or len(wrong) < len(shortest):
            nearest, shortest = arch.name, wrong
    switches = ", ".join(f"{name}={getattr(config, name)!r}" for name in shortest[:4])
    raise UserError(
        f"GGUF has no architecture for this network: the nearest, {nearest or 'llama'}, cannot express "
        f"{switches or 'its shapes'}. Save it in another format."
    )


def entries_of(config: ModelConfig, metadata: Mapping[str, Any], shapes: Mapping[str, Any], where: str) -> list[Entry]:
    """The weights that a file with this config must have."""
    return entries(config, _arch_of(metadata, where), fused_qkv="blk.0.attn_qkv.weight" in shapes)


def read_back(config: ModelConfig, model: GgufModel) -> ModelConfig:
    """The config that reading `model` would give."""
    shapes: dict[str, tuple[int, ...]] = {entry.name: () for entry in model.entries}
    shapes["token_embd.weight"] = (config.vocab_size, config.embed_dim)
    return config_from(model.metadata, shapes, model.constants.get, "the network")


def written_as(config: ModelConfig, arch: Arch) -> GgufModel:
    """The network under one architecture's keys and names, which may not express all of it."""
    c, a = config, arch.name
    rope_keys, constants = gguf_rope.scaling_to(c, a, arch.rope_scalings)
    metadata: dict[str, Any] = {
        "general.architecture": a,
        f"{a}.vocab_size": c.vocab_size,
        f"{a}.context_length": c.context_length,
        f"{a}.embedding_length": c.embed_dim,
        f"{a}.block_count": c.num_layers,
        f"{a}.feed_forward_length": _whole(c.ffn_dim),
        f"{a}.attention.head_count": _whole(c.num_heads),
        f"{a}.attention.head_count_kv": _whole(c.num_kv_heads),
        f"{a}.{_eps_key(arch)}": float(c.norm_eps),
    }
    if arch.own_head_dim:
        metadata |= {f"{a}.attention.key_length": c.head_dim, f"{a}.attention.value_length": c.head_dim}
    if c.position == "rope":
        metadata |= {f"{a}.rope.dimension_count": c.rotary_dim, f"{a}.rope.freq_base": float(c.rope_theta), **rope_keys}
        if c.rope_theta_local is not None and arch.has_local_keys:
            metadata[f"{a}.rope.freq_base_swa"] = float(c.rope_theta_local)
    for name in arch.scales:
        value = getattr(c, name)
        if value is not None:
            inverse = name == "logit_divisor" and arch.multiplies_logits
            metadata[f"{a}.{_SCALE_KEYS[name]}"] = float(1 / value if inverse else value)
    if arch.parallel_key:
        metadata[f"{a}.{arch.parallel_key}"] = c.parallel_residual
    if arch.local_period and "local" in c.layer_pattern:
        metadata[f"{a}.attention.sliding_window"] = c.window
        if arch.has_local_keys and len(c.layer_pattern) != arch.local_period:
            metadata[f"{a}.attention.sliding_window_pattern"] = len(c.layer_pattern)
    return GgufModel(metadata, entries(c, arch, fused_qkv=arch.fused_qkv), constants)


def _arch_of(metadata: Mapping[str, Any], where: str) -> Arch:
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise UserError(f"{where} does not say its general.architecture.")
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise UserError(f"{where} is a GGUF file of type {shown(kind)}, not a model.")
    if name not in BY_NAME:
        found = name[:60]
        if (reason := why_unreadable(name)) is not None:
            raise UserError(
                f"{where} has the architecture {found!r}, which cannot be read, because {reason}: choose a model of "
                "another family."
            )
        raise UserError(
            f"{where} has the architecture {found!r}, which is not supported: {did_you_mean(found, BY_NAME)}"
        )
    return BY_NAME[name]


def _eps_key(arch: Arch) -> str:
    rms = arch.switches.get("norm", "rms") == "rms"
    return "attention.layer_norm_rms_epsilon" if rms else "attention.layer_norm_epsilon"


def _scales(keys: Keys, arch: Arch, dim: int, layers: int) -> dict[str, Any]:
    """Multipliers and caps, with the defaults of llama.cpp's loader."""
    defaults = dict(arch.default_scales(dim, layers))
    if layers == arch.depth_scaled_by_heads:
        defaults["attention_scale"] = (dim / keys.required("attention.head_count")) ** -0.5
    for name in arch.scales:
        value = keys.number(_SCALE_KEYS[name], defaults.get(name))
        if name == "alibi_max_bias" and not value:
            raise keys.error(_SCALE_KEYS[name], "is not above 0: such a network without ALiBi is not supported")
        if value:  # 0 means that there is none
            defaults[name] = 1 / value if name == "logit_divisor" and arch.multiplies_logits else value
        else:
            defaults.pop(name, None)
    return defaults


def _parallel(keys: Keys, arch: Arch, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Whether attention and feed-forward read the same input, and share its norm."""
    if arch.parallel_key:
        return {"parallel_residual": keys.flag(arch.parallel_key, True)}
    if not arch.shared_without:
        return {}
    shared = arch.shared_without not in shapes
    return {"shared_norm": shared, **({"parallel_residual": shared} if arch.parallel_if_shared else {})}


def _windows(keys: Keys, arch: Arch, layers: int) -> dict[str, Any]:
    """The local layers' window and which layers are local."""
    window = keys.integer("attention.sliding_window", arch.default_window)
    if not window:
        return {}
    if not arch.local_period:
        raise keys.error("attention.sliding_window", "is set, which is not supported for this architecture")
    local = _local_layers(keys, arch, layers)
    pattern: dict[str, Any] = {"layer_pattern": tuple("local" if is_local else "global" for is_local in local)}
    if arch.global_unrotated:
        pattern["rope_pattern"] = local
    return {"window": window, **pattern} if any(local) else pattern


def _local_layers(keys: Keys, arch: Arch, layers: int) -> tuple[bool, ...]:
    """Which layers have the window, for every layer or for one period of them."""
    key, period = "attention.sliding_window_pattern", arch.local_period
    listed = keys.values.get(key)
    if arch.reads_pattern and isinstance(listed, np.ndarray):
        if listed.dtype.kind != "b" or len(listed) != layers:
            raise keys.error(key, f"does not list true or false for each of {layers} layers")
        return tuple(listed.tolist())
    if arch.has_local_keys or arch.reads_pattern:
        period = keys.integer(key, period, least=1)
    if period > MAX_LAYERS:
        raise keys.error(key, f"is {period}, more layers than any model has")
    return (True,) * max(period - 1, 1) + (False,) * (period > 1)


def _rope(keys: Keys, arch: Arch, values: Mapping[str, Any], read: gguf_rope.ReadTensor) -> dict[str, Any]:
    head_dim = values["head_dim"]
    dim = keys.integer("rope.dimension_count", head_dim, least=2)
    if dim > head_dim or dim % 2 or (dim != head_dim and not arch.partial_rope):
        raise keys.error("rope.dimension_count", f"is {dim}, which does not fit heads of {head_dim} dimensions")
    theta = keys.number("rope.freq_base", 10_000.0)
    scaling = gguf_rope.scaling_from(keys, values["context_length"], theta, dim, read)
    rope: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling, "rope_fraction": rope_fraction(dim, head_dim)}
    if arch.has_local_keys and "window" in values:
        rope["rope_theta_local"] = keys.number("rope.freq_base_swa", 10_000.0)
    if arch.local_unscaled and "window" in values and scaling is not None:
        rope["rope_theta_local"] = theta
    return rope


def _whole(value: int | tuple[int, ...]) -> int | np.ndarray:
    return np.array(value, np.int32) if isinstance(value, tuple) else value
