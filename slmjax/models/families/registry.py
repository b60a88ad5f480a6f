"""Named models as data: what a family shares, then what each size adds. Sources are the released configurations.

Rope lengths, biases, tying and rounding are those of the released weights, so that a named config fits its checkpoint.
"""

from __future__ import annotations

from slmjax.errors import UserError, did_you_mean
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.models.families import (
    bloom,
    cohere,
    ernie,
    exaone,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neo,
    gptj,
    granite,
    internlm,
    llama,
    minicpm,
    minitron,
    mobilellm,
    mpt,
    olmo,
    openelm,
    opt,
    phi,
    pythia,
    qwen,
    smollm,
    stablelm,
    starcoder,
)
from slmjax.models.families.switches import Families

FAMILIES: Families = {
    **gpt2.FAMILIES,
    **opt.FAMILIES,
    **bloom.FAMILIES,
    **falcon.FAMILIES,
    **pythia.FAMILIES,
    **phi.FAMILIES,
    **olmo.FAMILIES,
    **stablelm.FAMILIES,
    **minitron.FAMILIES,
    **llama.FAMILIES,
    **mobilellm.FAMILIES,
    **smollm.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **openelm.FAMILIES,
    **minicpm.FAMILIES,
    **granite.FAMILIES,
    **exaone.FAMILIES,
    **ernie.FAMILIES,
    **gpt_neo.FAMILIES,
    **gptj.FAMILIES,
    **starcoder.FAMILIES,
    **mpt.FAMILIES,
    **glm.FAMILIES,
    **cohere.FAMILIES,
    **internlm.FAMILIES,
}
_MODELS = {name: {**shared, **size} for shared, sizes in FAMILIES.values() for name, size in sizes.items()}


def model_config(name: str) -> ModelConfig:
    """The config of a named model, e.g. "smollm2-135m"; UserError with the nearest names when there is none."""
    key = name.lower()
    if key not in _MODELS:
        families = f"the families are {', '.join(FAMILIES)}."
        raise UserError(f"The model {name!r} is not known: {did_you_mean(key, _MODELS, most=3, otherwise=families)}")
    return ModelConfig(**_MODELS[key])


def families() -> dict[str, list[tuple[str, int]]]:
    """The named models of each family with their exact numbers of parameters."""
    return {
        family: [(name, count_parameters(model_config(name)).total) for name in sizes]
        for family, (_, sizes) in FAMILIES.items()
    }
