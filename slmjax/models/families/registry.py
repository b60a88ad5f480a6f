"""Named models as data: what a family shares, then what each size adds. Sources are the released configurations.

Rope lengths, biases, tying and rounding are those of the released weights, so that a named config fits its checkpoint.
"""

from __future__ import annotations

import difflib

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.models.families import layer_norm as families_layer_norm
from slmjax.models.families import phi3 as families_phi3
from slmjax.models.families import rms_norm as families_rms_norm
from slmjax.models.families.shapes import Switches

FAMILIES: dict[str, tuple[Switches, dict[str, Switches]]] = {
    **families_layer_norm.FAMILIES,
    **families_phi3.FAMILIES,
    **families_rms_norm.FAMILIES,
}
_MODELS = {name: {**shared, **size} for shared, sizes in FAMILIES.values() for name, size in sizes.items()}


def model_config(name: str) -> ModelConfig:
    """The config of a named model, e.g. "smollm2-135m"; UserError with the nearest names when there is none."""
    key = name.lower()
    if key not in _MODELS:
        near = difflib.get_close_matches(key, _MODELS, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"known families: {', '.join(FAMILIES)}."
        raise UserError(f"model {name!r} is not known; {known}")
    return ModelConfig(**_MODELS[key])


def families() -> dict[str, list[tuple[str, int]]]:
    """The named models of each family with their exact numbers of parameters."""
    return {
        family: [(name, count_parameters(model_config(name)).total) for name in sizes]
        for family, (_, sizes) in FAMILIES.items()
    }
