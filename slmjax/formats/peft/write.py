"""An adapter of ours as a directory that peft's `PeftModel.from_pretrained` puts on the same base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.adapters.adapter import Adapter, parameters_under, require_plain_inputs, require_plain_positions
from slmjax.formats.adapters.files import Tensors, require_place, write_adapter
from slmjax.formats.adapters.names import Names, names_of, within_layer
from slmjax.formats.peft.config import (
    EMBEDDINGS,
    IA3,
    LORA,
    P_TUNING,
    PREFIX,
    PREFIX_OF_NAMES,
    PROMPT,
    WEIGHTS,
)
from slmjax.formats.peft.factors import Found, ia3_factors, lora_factors, modules_of
from slmjax.formats.weight_map import write_tensors
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import flatten, layers_by_block
from slmjax.tokenization.tokenizer import Tokenizer

_KINDS = {"lora": LORA, "ia3": IA3, "prefix": PREFIX, "prompt": PROMPT, "p_tuning": P_TUNING}


def save_peft(
    adapter: Adapter,
    names: Names,
    base: Any,
    path: str | Path,
    *,
    base_name: str,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors (float32), whole or not at all; returns the directory.

    names, base: of the network that was fine-tuned, and its parameters, not quantized. base_name: how peft finds it, a
    name on the hub or a path. tokenizer: the fine-tune's own, which is written beside it, where it is not the base's.
    UserError for what peft cannot say; what it replaces must be an adapter alone.
    """
    directory = require_place(path)
    kind = _KINDS.get(adapter.method)
    if kind is None:
        raise UserError(f"Hugging Face peft cannot hold peft.method={adapter.method}: choose --format adapterhub.")
    if adapter.whole and kind not in (LORA, IA3):
        raise UserError(f"Hugging Face peft keeps no arrays of the base beside {kind}: peft.train cannot be written.")
    if kind in (LORA, IA3):
        values, tensors = _of_weights(adapter, names, base, kind)
    else:
        values, tensors = _of_tokens(adapter, names, kind)
    values = {
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "peft_type": kind,
        "revision": None,
        "task_type": "CAUSAL_LM",
        **values,
    }
    card = _card(directory.name, base_name, kind, tensors)
    beside: dict[str, Any] = {"tokenizer": tokenizer, "context_length": names.config.context_length}
    return write_adapter(directory, values, WEIGHTS, tensors, card=card, **beside)


def _of_weights(adapter: Adapter, names: Names, base: Any, kind: str) -> tuple[dict[str, Any], Tensors]:
    """LoRA and kin, IA3: config and tensors."""
    config, params = parameters_under(adapter, names.config, base)
    added = flatten(adapter.added)
    tied = config.tie_embeddings and any(path.startswith("embedder/") for path in (*added, *adapter.whole))
    if tied:  # peft would leave the head as it was
        config, params = parameters_under(replace(adapter, unties=True), config, params)
        added |= _head_like_table(added)
    plain, names = flatten(base), names_of(config, names.family)
    found = modules_of(names, added)
    trained = {*adapter.whole, *(["lm_head/kernel"] if tied and "embedder/embedding" in adapter.whole else [])}
    saved = [module for module in _holding(names, trained) if module not in found]
    if config.position_offset and any(names.weights[m].modules[0].path == "position_embedder" for m in found):
        raise UserError(
            f"{names.family.model_type} looks its positions up in a way of its own, which peft cannot adapt."
        )
    if names.head in {*found, *saved} and names.head != "lm_head":
        raise UserError(f"Releases of transformers call {names.head} differently: merge the adapter instead.")
    tensors: Tensors = {}
    if kind == LORA:
        values = _lora(adapter, names, found, flatten(params), tensors)
    else:
        values = _ia3(names, found, tensors)
    if kind == LORA and (new := {path for path in adapter.whole if path.endswith("/bias") and path not in plain}):
        _add_lora_biases(names, found, new, flatten(params), tensors)
        values["lora_bias"], trained = True, trained - new
        saved = [module for module in _holding(names, trained) if module not in found]
    entries = [
        entry
        for entry in names.entries.values()
        if entry.name.rpartition(".")[0] in saved or trained & {leaf.path for leaf in entry.leaves}
    ]
    for name, tensor in write_tensors(params, entries) if entries else ():
        module, _, part = name.rpartition(".")
        # Beside what is added to it, a module's own array is that of the layer that peft wraps.
        wrapped = "" if module in saved else "base_layer."
        tensors[f"{PREFIX_OF_NAMES}{module}.{wrapped}{part}"] = tensor
        if module not in saved and part == "bias" and kind == LORA:
            values["bias"] = "lora_only"
    return {**values, "modules_to_save": saved or None, "fan_in_fan_out": _is_conv1d(names, found)}, tensors


def _head_like_table(added: Mapping[str, Any]) -> dict[str, Any]:
    """The low-rank term that a tied head has from its table's: (s A B)^T.

    peft runs the two side by side; its own merging would add both to the one weight.
    """
    if "embedder/dora_magnitude" in added:
        raise UserError("DoRA of a tied table scales the head's inputs, which peft cannot say: untie or merge it.")
    if "embedder/lora_a" not in added:
        return {}
    return {
        "lm_head/lora_a": added["embedder/lora_b"].T,
        "lm_head/lora_b": added["embedder/lora_a"].T,
        "lm_head/lora_scale": added["embedder/lora_scale"],
    }


def _holding(names: Names, paths: set[str]) -> list[str]:
    """The modules, in the file's order, that hold any of these arrays of ours."""
    holding = [e.name.rpartition(".")[0] for e in names.entries.values() if paths & {leaf.path for leaf in e.leaves}]
    return list(dict.fromkeys(holding))


def _lora(
    adapter: Adapter, names: Names, found: Mapping[str, Found], base: Mapping[str, Any], tensors: Tensors
) -> dict[str, Any]:
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dora = any("dora_magnitude" in leaves for parts in found.values() for leaves in parts if leaves)
    for name, parts in found.items():
        weight = names.weights[name]
        factors = lora_factors(weight, parts, base)
        at = f"{PREFIX_OF_NAMES}{name}"
        a, b = ("lora_embedding_A", "lora_embedding_B") if weight.is_table else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{at}.{a}": factors.a, f"{at}.{b}": factors.b}
        if dora:
            if factors.magnitude is None:
                raise UserError("An adapter with DoRA on some of its modules only cannot be said in peft's format.")
            tensors[f"{at}.lora_magnitude_vector"] = factors.magnitude
        ranks[name] = len(factors.a)
        alphas[name] = _alpha(factors.scale, ranks[name] ** (0.5 if adapter.rslora else 1))
    r, alpha = (_most_common(values.values(), 8) for values in (ranks, alphas))
    return {
        "target_modules": _targets(names, list(found)),
        "r": r,
        "lora_alpha": _plain(alpha),
        "rank_pattern": _patterns(ranks, r),
        "alpha_pattern": {name: _plain(value) for name, value in _patterns(alphas, alpha).items()},
        "lora_dropout": adapter.options.dropout,
        "use_rslora": adapter.rslora,
        "use_dora": dora,
        "bias": "none",
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "lora_bias": False,
    }


def _add_lora_biases(
    names: Names, found: Mapping[str, Found], new: set[str], params: Mapping[str, Any], tensors: Tensors
) -> None:
    """Biases that the base has not, as those of LoRA's B: divided by the scale, zeros where there is none."""
    for name, parts in found.items():
        weight, rows = names.weights[name], []
        for module, leaves, size in zip(weight.modules, parts, weight.outputs, strict=True):
            path = f"{module.path}/bias"
            bias = np.asarray(params[path], np.float32) if path in new and leaves is not None else np.zeros(size)
            bias = bias if module.repeat is None or path not in new or leaves is None else bias[module.repeat]
            scale = 1.0 if leaves is None else float(leaves["lora_scale"])
            rows.append((bias / scale)[None])
        tensors[f"{PREFIX_OF_NAMES}{name}.lora_B.bias"] = weight.join(rows)[:, 0]


def _ia3(names: Names, found: Mapping[str, Found], tensors: Tensors) -> dict[str, Any]:
    inputs = []
    for name, parts in found.items():
        factors = ia3_factors(names.weights[name], parts)
        tensors[f"{PREFIX_OF_NAMES}{name}.ia3_l"] = factors
        inputs += [name] if factors.shape[0] == 1 else []
    return {
        "target_modules": _targets(names, list(found)),
        "feedforward_modules": _targets(names, inputs),
        "init_ia3_weights": True,
    }


def _targets(names: Names, modules: Sequence[str]) -> list[str]:
    """Names that mean these modules and no others: one for all layers ("q_proj") where it can."""
    targets: dict[str, None] = {}
    for module in modules:
        for target in (module.rpartition(".")[2], within_layer(module), module):
            meant = [m for m in names.weights if m == target or m.endswith(f".{target}")]
            if set(meant) <= set(modules):
                targets[target] = None
                break
    return list(targets)


def _patterns(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """What differs from the usual value, under names of whole modules: peft matches them as regular expressions."""
    return {name.replace(".", r"\."): value for name, value in values.items() if value != usual}


def _is_conv1d(names: Names, found: Mapping[str, Found]) -> bool:
    return any(not names.weights[name].is_rows and not names.weights[name].is_table for name in found)


def _of_tokens(adapter: Adapter, names: Names, kind: str) -> tuple[dict[str, Any], Tensors]:
    """Prefix and prompt tuning: config and the one tensor."""
    config, what = names.config, f"peft.method={adapter.method} cannot be written for peft"
    require_plain_positions(config, what)
    if kind == PREFIX:
        G, K, L = config.num_kv_heads, config.head_dim, config.num_layers
        by_layer = _by_layer(config, flatten(adapter.added))  # [L, 2, n, G, K]
        by_layer[:, 0] = by_layer[:, 0][..., np.argsort(names.key_order())]
        n = by_layer.shape[2]
        rows = by_layer.transpose(2, 0, 1, 3, 4).reshape(n, -1)
        own: dict[str, Any] = {"token_dim": _one(G) * K, "num_attention_heads": G, "encoder_hidden_size": _one(G) * K}
        own |= {"prefix_projection": False}
    else:
        require_plain_inputs(config, names.family.model_type, what)
        rows = np.asarray(adapter.prompt, np.float32)
        n, L = len(rows), config.num_layers
        heads = config.num_heads if isinstance(config.num_heads, int) else max(config.num_heads)
        own = {"token_dim": rows.shape[1], "num_attention_heads": heads}
        if kind == PROMPT:
            own |= {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_name_or_path": None}
        else:  # folded away; peft builds none for inference
            own |= {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": rows.shape[1]}
            own |= {"encoder_num_layers": 2, "encoder_dropout": 0.0}
    common = {"num_virtual_tokens": n, "num_layers": L, "num_transformer_submodules": 1}
    return {**common, **own}, {EMBEDDINGS: rows}


def _by_layer(config: ModelConfig, added: Mapping[str, Any]) -> np.ndarray:
    """The prefix of every layer in the order of the layers, [L, 2, n, G, K]."""
    blocks = layers_by_block(config)
    order = [layer for layers in blocks.values() for layer in layers]
    flat = {
        kind: np.concatenate([np.asarray(added[f"{block}/attention/prefix_{kind}"]) for block in blocks])
        for kind in ("key", "value")
    }
    return np.stack([flat["key"], flat["value"]], axis=1)[np.argsort(order)].astype(np.float32)


def _one(heads: int | tuple[int, ...]) -> int:
    if not isinstance(heads, int):
        raise UserError("Layers that differ in their key/value heads have no prefix in peft's format.")
    return heads


def _most_common(values: Iterable[Any], default: Any) -> Any:
    return next((value for value, _ in Counter(values).most_common(1)), default)


def _alpha(scale: float, divisor: float) -> float:
    """The shortest number that divided gives the scale in float32: 32 and not 32.00000095, where people wrote 32."""
    alphas = (float(f"{scale * divisor:.{digits}g}") for digits in (4, 6, 8, 17))
    return next((alpha for alpha in alphas if np.float32(alpha / divisor) == np.float32(scale)), scale * divisor)


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _card(name: str, base: str, kind: str, tensors: Tensors) -> str:
    count = sum(tensor.size for tensor in tensors.values())
    quoted = json.dumps(base, ensure_ascii=False)
    return f"""---
library_name: peft
base_model: {quoted}
tags:
- slmjax
- {kind.lower()}
---

# {name}

An adapter ({kind}, {count:,} numbers) of {base}, written by slmjax.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({quoted}), "{name}")
```
"""
