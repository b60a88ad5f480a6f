"""Convert peft's tensors to the arrays of our collection: LoRA, DoRA, IA3 layer by layer, prefixes, prompts."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.formats.adapters.adapter import Adapter, require_plain_inputs, require_plain_positions
from slmjax.formats.adapters.names import Names, Weight
from slmjax.formats.adapters.pieces import Misfit, Pieces
from slmjax.formats.peft.config import P_TUNING, PREFIX, PeftFile
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import layers_by_block, unflatten
from slmjax.models.transformer import Transformer
from slmjax.peft.methods.prompts import keys_and_values
from slmjax.untrusted import MAX_RANK, MAX_VIRTUAL_TOKENS


def add_lora(pieces: Pieces, file: PeftFile, weight: Weight, arrays: dict[str, np.ndarray]) -> float:
    """A module's A [r, in], B [out, r] (and magnitude [out]) as ours, a fused one's part by part; returns the scale.

    A is shared by the parts of a fused product, and each part has its own rows of B.
    """
    a, b = arrays["A"], arrays["B"]
    inputs, outputs = weight.features
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not 1 <= len(a) <= MAX_RANK:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise UserError(
            f"{file.path.parent}: lora_A and lora_B of {weight.name} are {shapes}, which cannot be multiplied."
        )
    if (a.shape[1], b.shape[0]) != (inputs, outputs):
        theirs = f"{a.shape[1]} inputs and {b.shape[0]} outputs"
        raise Misfit(f"{weight.name} has {theirs} there, {inputs} and {outputs} here")
    rank, alpha = len(a), file.alpha(weight.name)
    if file.rank(weight.name) != rank:
        said = file.rank(weight.name)
        raise UserError(f"{file.path} gives {weight.name} the rank {said}, but its tensors have {rank}.")
    scale = alpha / (rank**0.5 if file.flag("use_rslora") else rank)
    magnitude = arrays.get("magnitude")
    if magnitude is not None and magnitude.shape != (outputs,):
        raise Misfit(f"lora_magnitude_vector of {weight.name} is {list(magnitude.shape)} there, [{outputs}] here")
    if magnitude is not None and scale == 0:
        raise UserError(f"{file.path} gives {weight.name} an alpha of 0 under DoRA, which ours cannot tell from none.")
    for i, (module, part) in enumerate(zip(weight.modules, weight.split(b), strict=True)):
        pieces.add(module, "lora_a", a.T)
        pieces.add(module, "lora_b", part)
        pieces.add(module, "lora_scale", np.asarray(scale, np.float32))
        if magnitude is not None:
            pieces.add(module, "dora_magnitude", weight.split(magnitude[:, None])[i][0])
    return scale


def add_ia3(pieces: Pieces, weight: Weight, factors: np.ndarray) -> None:
    """A module's factors: [out, 1] on its outputs, or [1, in] on its inputs, which all parts of a fused one share."""
    inputs, outputs = weight.features
    if weight.is_table:
        raise UserError(f"The adapter scales the table {weight.name} by IA3, which scales products alone.")
    if factors.shape == (outputs, 1):
        for module, part in zip(weight.modules, weight.split(factors), strict=True):
            pieces.add(module, "ia3_output", part[0])
    elif factors.shape == (1, inputs):
        for module in weight.modules:
            pieces.add(module, "ia3_input", factors[0])
    else:
        raise Misfit(f"ia3_l of {weight.name} is {list(factors.shape)} there, [{outputs}, 1] or [1, {inputs}] here")


def prefix_of(file: PeftFile, rows: np.ndarray, names: Names) -> Adapter:
    """Prefix tuning: [n, L, 2, G, K] flattened, keys (already rotated) and values; peft has folded its MLP away."""
    config, what = names.config, str(file.path.parent)
    require_plain_positions(config, what)
    n, L, G, K = _num_tokens(file, rows), config.num_layers, config.num_kv_heads, config.head_dim
    if not isinstance(G, int):
        raise UserError(f"{what}: layers that differ in their key/value heads have no prefix of peft's.")
    if rows.shape[1] != 2 * L * G * K:
        raise Misfit(f"a virtual token has {rows.shape[1]} numbers there, 2 x {L} layers x {G} heads x {K} here")
    by_layer = rows.reshape(n, L, 2, G, K).transpose(1, 2, 0, 3, 4)  # [L, 2, n, G, K]
    by_layer = np.stack([by_layer[:, 0][..., names.key_order()], by_layer[:, 1]], axis=1)
    return Adapter("prefix", prefix_collection(config, by_layer))


def prefix_collection(config: ModelConfig, by_layer: np.ndarray) -> dict[str, Any]:
    """[L, 2, n, G, K] in the order of the layers -> the collection's stacks."""
    flat = {}
    for block, layers in layers_by_block(config).items():
        for i, name in enumerate(("prefix_key", "prefix_value")):
            flat[f"{block}/attention/{name}"] = jnp.asarray(by_layer[list(layers), i], jnp.float32)
    return unflatten(flat)


def prompt_of(file: PeftFile, rows: np.ndarray, config: ModelConfig, base: Any, model_type: str) -> Adapter:
    """Prompt tuning, and P-tuning, whose encoder peft has folded away: input vectors [n, E] before any text.

    The network is causal, so all that they do is in the keys and values that they leave, which stand at positions 0 to
    n - 1 as peft's do.
    """
    what = str(file.path.parent)
    require_plain_positions(config, what)
    require_plain_inputs(config, model_type, what)
    _num_tokens(file, rows)
    E = config.table_dim
    if rows.shape[1] != E:
        raise Misfit(f"a virtual token has {rows.shape[1]} numbers there, {E} here")
    prompt = jnp.asarray(rows, jnp.float32)
    added = jax.jit(partial(keys_and_values, Transformer(config)))(base, prompt)
    return Adapter("p_tuning" if file.kind == P_TUNING else "prompt", added, prompt=prompt)


def _num_tokens(file: PeftFile, rows: np.ndarray) -> int:
    said = file.integer("num_virtual_tokens", MAX_VIRTUAL_TOKENS)
    submodules = file.values.get("num_transformer_submodules")
    if submodules not in (None, 1):
        raise UserError(f"{file.path}: num_transformer_submodules is {str(submodules)[:20]}; a decoder has 1.")
    if rows.ndim != 2 or len(rows) != said:
        kind = "prefix" if file.kind == PREFIX else "prompt"
        raise UserError(f"{file.path} promises {said} virtual tokens, but the {kind} has shape {list(rows.shape)}.")
    return said
