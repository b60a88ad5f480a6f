"""Facts of a model that lm-evaluation-harness writes into its results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from slmjax import __version__
from slmjax.inference.language_model import LanguageModel
from slmjax.models.parameters import flatten
from slmjax.peft.fingerprint import fingerprint
from slmjax.tokenization.tokenizer import Tokenizer


def model_facts(lm: LanguageModel) -> dict[str, Any]:
    """Size, dtypes, fingerprints and mesh of a model, by the names that they have in the results' `config`."""
    added = {"peft_fingerprint": fingerprint(lm.peft)} if lm.peft else {}
    leaves = [*flatten(lm.params).values(), *flatten(lm.peft).values()]
    meshes = [leaf.sharding.mesh for leaf in leaves if hasattr(getattr(leaf, "sharding", None), "mesh")]
    return {
        "model_num_parameters": sum(leaf.size for leaf in leaves),
        "model_dtype": ", ".join(sorted({str(leaf.dtype) for leaf in leaves})),
        "computed_in": lm.model.execution.dtype.__name__,
        "model_fingerprint": fingerprint(lm.params),
        **added,
        "tokenizer_fingerprint": lm.require_tokenizer().fingerprint,
        "mesh": {axis: size for axis, size in meshes[0].shape.items() if size > 1} if meshes else {},
        "slmjax_version": __version__,
    }


def special_tokens(tokenizer: Tokenizer) -> SimpleNamespace:
    """Special tokens by the names of transformers, `bos_token` and `bos_token_id` and so on, None where not there."""
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    names = {f"{role}_token": None if id is None else tokenizer.id_to_token(id) for role, id in ids.items()}
    return SimpleNamespace(**names, **{f"{role}_token_id": id for role, id in ids.items()})
