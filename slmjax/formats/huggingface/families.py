"""All families of Hugging Face that can be read and written, by their model_type."""

from __future__ import annotations

from slmjax.errors import UserError, did_you_mean
from slmjax.formats.huggingface import custom_code as huggingface_odd
from slmjax.formats.huggingface import gemma as huggingface_gemma
from slmjax.formats.huggingface import gpt as huggingface_gpt
from slmjax.formats.huggingface import layer_norm as huggingface_layer_norm
from slmjax.formats.huggingface import llama_heirs as huggingface_llama_heirs
from slmjax.formats.huggingface import megatron as huggingface_megatron
from slmjax.formats.huggingface import rms_norm as huggingface_rms
from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.formats.unreadable import why_unreadable

FAMILIES: dict[str, HuggingFaceFamily] = {
    family.model_type: family
    for family in (
        *huggingface_rms.FAMILIES,
        *huggingface_llama_heirs.FAMILIES,
        *huggingface_gemma.FAMILIES,
        *huggingface_layer_norm.FAMILIES,
        *huggingface_megatron.FAMILIES,
        *huggingface_gpt.FAMILIES,
        *huggingface_odd.FAMILIES,
    )
}


def family_of(model_type: object) -> HuggingFaceFamily:
    """The family of a config's model_type; UserError with the nearest ones when there is none."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    shown = str(model_type)[:60]
    if (reason := why_unreadable(model_type)) is not None:
        raise UserError(f"The model_type {shown!r} cannot be read, because {reason}: choose a model of another family.")
    raise UserError(f"The model_type {shown!r} cannot be read: {did_you_mean(shown, sorted(FAMILIES))}")
