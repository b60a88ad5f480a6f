"""Parameter path -> PartitionSpec. The model file knows nothing of this; any tree of the same paths follows it."""

from __future__ import annotations

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.models.parameters import PyTree, is_stacked, path_string
from slmjax.sharding.mesh import WEIGHTS, divides

# First match wins. Specs are those of one layer; stacked layers get a leading unsharded axis.
RULES: tuple[tuple[str, P], ...] = (
    (r"embedder/embedding$", P("tensor", WEIGHTS)),  # of positions too
    (r"(q|k|v|gate|up)_proj/kernel$", P(WEIGHTS, "tensor")),
    (r"(q|k|v|gate|up)_proj/bias$", P("tensor")),
    (r"(o|down)_proj/kernel$", P("tensor", WEIGHTS)),
    (r"lm_head/kernel$", P(WEIGHTS, "tensor")),
    (r"lm_head/bias$", P("tensor")),
    (r"embed_(in|out)_proj/kernel$", P(None, WEIGHTS)),
    # What fine-tuning adds lies along what it is added to; the rank is never cut.
    (r"(q|k|v|gate|up)_proj/lora_a$", P(WEIGHTS, None)),
    (r"(q|k|v|gate|up)_proj/lora_b$", P(None, "tensor")),
    (r"(q|k|v|gate|up)_proj/dora_magnitude$", P("tensor")),
    (r"(o|down)_proj/lora_a$", P("tensor", None)),
    (r"(o|down)_proj/lora_b$", P(None, WEIGHTS)),
    (r"embedder/lora_a$", P("tensor", None)),
    (r"embedder/lora_b$", P(None, WEIGHTS)),
    (r"lm_head/lora_a$", P(WEIGHTS, None)),
    (r"lm_head/lora_b$", P(None, "tensor")),
    (r"adapter_down$", P(WEIGHTS, None)),
    (r"adapter_up$", P(None, WEIGHTS)),
    (r"prefix_(key|value)$", P(None, "tensor", None)),
    # Quantized weights are sharded like the weights they replace; their scales are small (quantization/weights.py).
    (r"(q|k|v|gate|up)_proj/kernel_(int8|int4|nf4)$", P(WEIGHTS, "tensor")),
    (r"(o|down)_proj/kernel_(int8|int4|nf4)$", P("tensor", WEIGHTS)),
)


def rule_for(path: str) -> P:
    """The spec of one layer's array by its path alone; P() (replicated) where no rule matches."""
    return next((spec for pattern, spec in RULES if re.search(pattern, path)), P())


def fit_spec(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec without the axes that do not divide their dimension; missing dimensions are whole."""
    parts = tuple(spec) + (None,) * (len(shape) - len(spec))
    return P(*(axes if divides(mesh, axes, size) else None for axes, size in zip(parts, shape, strict=True)))


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec of one array. An axis that does not divide its dimension is left out there (replicated)."""
    spec = rule_for(path)
    if not spec:
        return P()
    parts = ((None,) if is_stacked(path) else ()) + tuple(spec)
    # An optimizer's statistic of another rank (factored moments) is replicated.
    return fit_spec(P(*parts), shape, mesh) if len(parts) == len(shape) else P()


def tree_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for each leaf (array or ShapeDtypeStruct) of a parameter, optimizer or state tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(path_string(path), leaf.shape, mesh)), tree
    )
