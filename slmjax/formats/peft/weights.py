"""An adapter's tensors for a base's weights: LoRA and kin, IA3, whole modules, single tokens.

The tensors say what is adapted, the config how; what the config promises and the file lacks is refused. peft adds to a
tied model's table without its head following (and the other way round), so such an adapter unties it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from slmjax.errors import UserError, first_few
from slmjax.formats.adapters.adapter import Adapter
from slmjax.formats.adapters.names import Names, Weight, layer_of, names_of
from slmjax.formats.adapters.pieces import Misfit, Pieces
from slmjax.formats.peft.collect import add_ia3, add_lora
from slmjax.formats.peft.config import IA3, LORA, WEIGHTS, is_bounded, matches
from slmjax.formats.peft.grown import token_indices, with_biases, with_rows
from slmjax.formats.weight_map import Leaf, joined_shapes
from slmjax.models.parameters import abstract_leaves, resized
from slmjax.peft.options import Options

if TYPE_CHECKING:
    from typing import Any

    from slmjax.formats.peft.read import PeftDirectory


def read_weights(opened: PeftDirectory, names: Names, base: Mapping[str, Any], where: str) -> Adapter:
    """The adapter for a base `where` of these names and flat parameters; see `PeftDirectory.read`."""
    file, plain = opened.file, names.config
    unties = plain.tie_embeddings and _unties(opened, names)
    names, base = _grown(opened, names, base, unties)
    if missing := names.missing(opened.named()):
        what = first_few(missing, 1)
        raise UserError(f"{opened.path} adapts {what}, which {where} does not have: it has {names.kinds()}.")
    if len({names.module(module) for module in opened.modules}) < len(opened.modules):
        raise UserError(f"{opened.path / WEIGHTS} adapts one module under two names.")
    _require_targets(opened, names, where)
    whole = _whole(opened, names, base)
    if unties and names.config.vocab_size != plain.vocab_size and "lm_head/kernel" not in whole:
        whole["lm_head/kernel"] = whole["embedder/embedding"].T  # the head that the resized table was tied to
    pieces = Pieces()
    for module, tensors in opened.modules.items():
        weight = names.weights.get(names.module(module))
        if weight is None:
            raise UserError(f"{opened.path}: {module} is not a weight for {file.kind}; there are {names.kinds()}.")
        arrays = {kind: opened.tensor(name) for kind, name in tensors.items()}
        if "tokens" in arrays:
            _put_tokens(whole, opened, module, weight, arrays.pop("tokens"), base)
            if not arrays:
                continue
        if file.kind == IA3:
            add_ia3(pieces, weight, arrays["ia3"])
            continue
        if lacking := {"A", "B", *(["magnitude"] if file.flag("use_dora") else [])} - arrays.keys():
            raise UserError(f"{opened.path} is incomplete: {WEIGHTS} has no lora_{min(lacking)} of {module}.")
        scale = add_lora(pieces, file, weight, arrays)
        if "bias" in arrays:
            _add_bias(whole, weight, scale * arrays["bias"], base)
    dropout = file.number("lora_dropout", file.values.get("lora_dropout") or 0.0)
    options = Options(dropout=dropout if 0 <= dropout < 1 else 0.0)
    method = "ia3" if file.kind == IA3 else "lora"
    rslora = file.kind == LORA and file.flag("use_rslora")
    network = None if names.config == plain else names.config
    return Adapter(method, pieces.stacked(names.config), options, whole, network=network, unties=unties, rslora=rslora)


def _grown(
    opened: PeftDirectory, names: Names, base: Mapping[str, Any], unties: bool
) -> tuple[Names, Mapping[str, Any]]:
    """The names and flat parameters of the network that the adapter makes of its base, before anything is put in."""
    config = replace(names.config, tie_embeddings=False) if unties else names.config
    ends = [end for end in (names.table, names.head) if end is not None]
    rows = {end: opened.shape(theirs)[0] for end in ends for theirs in _held(opened, names, f"{end}.weight")}
    trained = [module for module, tensors in opened.modules.items() if "tokens" in tensors]
    if opened.file.values.get("trainable_token_indices") and not trained:
        raise UserError(f"{opened.path} is incomplete: {WEIGHTS} has nothing for its trainable_token_indices.")
    ids = [id for module in trained for id in token_indices(opened.file, module)]
    config = with_rows(config, rows, ids, follows=names.config.tie_embeddings)
    if config.tie_embeddings and names.head in rows:  # the same as the table, since nothing unties them
        for name in [n for n in opened.whole if names.family.own_name(n) == f"{names.head}.weight"]:
            del opened.whole[name]
    biased = [names.weights.get(names.module(m)) for m, tensors in opened.modules.items() if "bias" in tensors]
    modules = [leaf.path for weight in biased if weight is not None for leaf in weight.modules]
    biased_head = any("bias" in opened.modules[m] for m in opened.modules if names.module(m) == names.head)
    config = with_biases(config, [*modules, *(["lm_head"] if biased_head else [])])
    if config == names.config:
        return names, base
    return names_of(config, names.family), resized(base, abstract_leaves(config))


def _held(opened: PeftDirectory, names: Names, name: str) -> list[str]:
    """The file's tensor that replaces one of the base, as a list of one or none."""
    return [theirs for ours, theirs in opened.whole.items() if names.family.own_name(ours) == name]


def _put_tokens(
    whole: dict[str, np.ndarray],
    opened: PeftDirectory,
    module: str,
    weight: Weight,
    rows: np.ndarray,
    base: Mapping[str, Any],
) -> None:
    """Replace some tokens' rows of a table or head: peft calls them a delta, but they are the rows themselves."""
    ids = token_indices(opened.file, module)
    path = f"{weight.modules[0].path}/{'embedding' if weight.is_table else 'kernel'}"
    if weight.modules[0].path not in ("embedder", "lm_head"):
        raise UserError(f"{opened.path} trains single tokens of {module}, which is neither a table nor the head.")
    table = np.array(whole[path] if path in whole else base[path], np.float32)
    table = table if weight.is_table else table.T
    if rows.shape != (len(ids), table.shape[1]):
        raise Misfit(f"the tokens of {module} are {list(rows.shape)} there, {[len(ids), table.shape[1]]} here")
    table[ids] = rows
    whole[path] = table if weight.is_table else table.T


def _unties(opened: PeftDirectory, names: Names) -> bool:
    """Whether a tied model's table and head no longer agree under the adapter."""
    ends = {names.table, names.head}
    trained = {names.module(m): set(tensors) for m, tensors in opened.modules.items() if names.module(m) in ends}
    if set(trained) == {names.table} and trained[names.table] == {"tokens"}:
        del trained[names.table]  # a tied head has the table's new rows
    held = {end: theirs for end in ends for theirs in _held(opened, names, f"{end}.weight")}
    whole = {end: theirs for end, theirs in held.items() if ".base_layer." not in theirs}
    if not trained and whole.keys() == ends:
        table, head = map(opened.tensor, whole.values())
        return not np.array_equal(table, head)
    if not trained and any(opened.shape(theirs)[0] != names.config.vocab_size for theirs in whole.values()):
        return False  # a resized table alone, which its head has followed
    touched = {*trained, *whole}
    return bool(touched) and not (opened.file.flag("ensure_weight_tying") and names.head not in touched)


def _require_targets(opened: PeftDirectory, names: Names, where: str) -> None:
    """UserError for what the config targets and the base or the file lacks."""
    file = opened.file
    targets, excluded = file.names("target_modules"), file.names("exclude_modules") or []
    trained = file.names("modules_to_save") or []
    layers = file.values.get("layers_to_transform")
    undecided = isinstance(excluded, str) or isinstance(trained, str) or file.values.get("layers_pattern")
    if targets is None or targets == "all-linear" or undecided:
        return
    if isinstance(targets, str) and not is_bounded(targets):
        return

    def means(target: str, module: str) -> bool:
        return any(module == name or module.endswith(f".{name}") for name in (target, names.module(target)))

    if isinstance(targets, str):
        expected = [m for m in names.weights if matches(targets, m, f"{file.path}: target_modules")]
    else:
        for target in targets:
            if not any(means(target, module) for module in names.weights):
                there = names.kinds()
                raise UserError(f"{file.path} targets {target[:80]!r}, which {where} does not have; there are {there}.")
        expected = [module for module in names.weights if any(means(target, module) for target in targets)]
        if layers is not None and layers != []:
            numbers = layers if isinstance(layers, list) else [layers]
            expected = [module for module in expected if layer_of(module) in numbers]
    held = {names.module(module) for module in opened.modules}
    skipped = [*excluded, *trained]
    lacking = [m for m in expected if m not in held and not any(means(name, m) for name in skipped)]
    if lacking:
        what = first_few(lacking, 1)
        raise UserError(f"{opened.path} is incomplete: {WEIGHTS} has nothing for {what}, which its config targets.")


def _whole(opened: PeftDirectory, names: Names, base: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The base's arrays that the adapter replaces, whole stacks: the base's own where only some layers are given."""
    whole: dict[str, np.ndarray] = {}
    for name, theirs in opened.whole.items():
        entry = names.entries.get(names.family.own_name(name))
        if entry is None:
            raise UserError(f"{opened.path} holds {name}, which its base does not have.")
        (wanted,) = joined_shapes(names.config, [entry])
        if wanted != opened.shape(theirs):
            raise Misfit(f"{name} is {list(opened.shape(theirs))} there, {list(wanted)} here")
        # peft repeats the base's own table beside what is added to it.
        repeated = ".base_layer." in theirs
        for leaf, part in zip(entry.leaves, entry.split(opened.tensor(theirs)), strict=True):
            if repeated and _is_already(base, leaf, part):
                continue
            if leaf.repeat is None:
                whole[leaf.path] = part
                continue
            if leaf.path not in whole:
                whole[leaf.path] = np.array(base[leaf.path], np.float32)
            whole[leaf.path][leaf.repeat] = part
    return whole


def _is_already(base: Mapping[str, Any], leaf: Leaf, part: np.ndarray) -> bool:
    array = base.get(leaf.path)
    return array is not None and np.array_equal(array if leaf.repeat is None else array[leaf.repeat], part)


def _add_bias(whole: dict[str, np.ndarray], weight: Weight, bias: np.ndarray, base: Mapping[str, Any]) -> None:
    """lora_bias: a bias of B, times the scale, is one more of the base's own."""
    parts = weight.split(bias[:, None])
    for module, part in zip(weight.modules, parts, strict=True):
        path = f"{module.path}/bias"
        if path not in whole:
            whole[path] = np.array(base[path], np.float32)
        if module.repeat is None:
            whole[path] = whole[path] + part[0]
        else:
            whole[path][module.repeat] += part[0]
