"""Networks that people bring and that no switches of ours express, each with the reason, which its refusal says."""

from __future__ import annotations

_GEMMA3N = "it mixes four residual streams, embeds tokens anew in every layer and shares keys among layers"
_LFM2 = "most of its layers are short convolutions, whose state is no cache of keys and values"

# model_type of Hugging Face, or general.architecture of GGUF -> what its network does
REASONS: dict[str, str] = {
    "gemma3n": _GEMMA3N,
    "gemma3n_text": _GEMMA3N,
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "lfm2moe": _LFM2,
}


def why_unreadable(name: object) -> str | None:
    """The reason that a network of this name cannot be read, as a clause; None where the name is not one of these."""
    return REASONS.get(name) if isinstance(name, str) else None
