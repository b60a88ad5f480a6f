"""A directory of Hugging Face peft as an adapter of ours: LoRA and kin, IA3, prefix and prompt tuning, P-tuning.

The tensors say what is adapted, the config how; what the config promises and the file lacks is refused. peft adds to a
tied model's table without its head following (and the other way round), so such an adapter unties it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError, first_few
from slmjax.formats.adapters.adapter import Adapter
from slmjax.formats.adapters.names import Names, layer_of, names_of, without_layers
from slmjax.formats.adapters.pieces import Misfit, Pieces
from slmjax.formats.peft.collect import add_ia3, add_lora, prefix_of, prompt_of
from slmjax.formats.peft.config import IA3, LORA, PREFIX, PeftFile, is_bounded, matches, peft_file
from slmjax.formats.recognition import ADAPTER_CONFIG
from slmjax.formats.safetensors_files import SafetensorsDirectory
from slmjax.formats.weight_map import Leaf, joined_shapes, warn_of_nan
from slmjax.models.parameters import Params, flatten
from slmjax.peft.options import Options
from slmjax.untrusted import inside, read_json

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX_OF_NAMES = "base_model.model."
EMBEDDINGS = "prompt_embeddings"
# A tensor's name -> its module, and what it is of it.
_KINDS = (
    (r"(.*)\.lora_A\.weight", "A"),
    (r"(.*)\.lora_B\.weight", "B"),
    (r"(.*)\.lora_B\.bias", "bias"),
    (r"(.*)\.lora_embedding_A", "A"),
    (r"(.*)\.lora_embedding_B", "B"),
    (r"(.*)\.lora_magnitude_vector(?:\.weight)?", "magnitude"),
    (r"(.*)\.ia3_l", "ia3"),
)


@dataclass
class PeftDirectory:
    """An adapter's files, opened: what the config says and which tensors there are, by what they belong to."""

    origin = "peft"

    path: Path
    file: PeftFile
    tensors: SafetensorsDirectory
    modules: dict[str, dict[str, str]] = field(default_factory=dict)  # module -> kind -> tensor
    whole: dict[str, str] = field(default_factory=dict)  # tensor of the base -> tensor here

    @property
    def base(self) -> str | None:
        """The base's name on the hub, or its path."""
        return self.file.base

    @property
    def method(self) -> str:
        """The method's name in the config, and its variants."""
        variants = [key for key in ("use_rslora", "use_dora", "lora_bias") if self.file.flag(key)]
        return " ".join([self.file.kind, *variants])

    def facts(self) -> dict[str, Any]:
        """Ranks and modules, or virtual tokens."""
        if self.file.kind not in (LORA, IA3):
            return {"virtual_tokens": self.shape(EMBEDDINGS)[0]}
        ranks = sorted({self.shape(tensors["A"])[0] for tensors in self.modules.values() if "A" in tensors})
        facts: dict[str, Any] = {"rank": ranks} if ranks else {}
        return facts | {"modules": without_layers(self.modules), "trained_wholly": list(self.whole)}

    @property
    def revision(self) -> str | None:
        """The revision of the base on the hub; None where the config names none."""
        revision = self.file.values.get("revision")
        return None if revision is None else str(revision)[:60]

    def tensor(self, name: str) -> np.ndarray:
        """A tensor in float32; a warning where it holds NaN or infinity."""
        array = np.asarray(self.tensors.read(name), np.float32)
        warn_of_nan(array, f"{self.path}: {name}")
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.tensors.tensors[name].shape

    def named(self) -> list[str]:
        """Every module of the base that a tensor is for."""
        return list(dict.fromkeys([*self.modules, *(name.rpartition(".")[0] for name in self.whole)]))

    def read(self, names: Names, params: Params, where: str) -> Adapter:
        """The adapter as something to add to the base `where`, whose names and parameters these are.

        UserError naming tensors that are missing, not expected or of another size than the base's.
        """
        config = names.config
        try:
            if self.file.kind == PREFIX:
                return prefix_of(self.file, self.tensor(EMBEDDINGS), names)
            if self.file.kind not in (LORA, IA3):
                rows = self.tensor(EMBEDDINGS)
                return prompt_of(self.file, rows, config, params, names.family.model_type)
            return _read_weights(self, names, flatten(params), where)
        except Misfit as misfit:
            raise UserError(f"{self.path} is an adapter of another base than {where}: {misfit}.") from misfit


def open_peft(directory: Path) -> PeftDirectory:
    """Config and header of an adapter's directory, in agreement with each other. Nothing is run, no pickle opened."""
    config = inside(directory, ADAPTER_CONFIG)
    file = peft_file(read_json(config), config)
    if not (directory / WEIGHTS).exists() and (directory / PICKLE).exists():
        raise UserError(
            f"{directory} holds its weights only in {PICKLE}, a pickle, which could run code when it is read: load it "
            "once with peft and save it again (save_pretrained), which writes safetensors."
        )
    opened = PeftDirectory(directory, file, SafetensorsDirectory(directory, WEIGHTS))
    names = opened.tensors.shapes()
    if file.kind not in (LORA, IA3):
        if set(names) != {EMBEDDINGS}:
            raise UserError(f"{directory / WEIGHTS} holds {', '.join(sorted(names)[:3])}, not {EMBEDDINGS} alone.")
        return opened
    for name in names:
        _sort(opened, name)
    if not opened.modules and not opened.whole:
        raise UserError(f"{directory / WEIGHTS} holds no tensors.")
    return opened


def _unexpected(opened: PeftDirectory, name: str) -> UserError:
    return UserError(
        f"{opened.path / WEIGHTS}: the tensor {name[:120]} is not expected in a file of {opened.file.kind}."
    )


def _sort(opened: PeftDirectory, name: str) -> None:
    if not name.startswith(PREFIX_OF_NAMES):
        raise _unexpected(opened, name)
    rest = name.removeprefix(PREFIX_OF_NAMES)
    for pattern, kind in _KINDS:
        if found := re.fullmatch(pattern, rest):
            of_module = opened.modules.setdefault(found[1], {})
            if (kind == "ia3") != (opened.file.kind == IA3) or kind in of_module:
                raise _unexpected(opened, name)
            of_module[kind] = name
            return
    if not rest.endswith((".weight", ".bias")) or ".lora_" in rest:
        raise _unexpected(opened, name)
    rest = rest.replace(".base_layer.", ".")
    if rest in opened.whole:
        raise _unexpected(opened, name)
    opened.whole[rest] = name


def _read_weights(opened: PeftDirectory, names: Names, base: Mapping[str, Any], where: str) -> Adapter:
    file, config = opened.file, names.config
    unties = config.tie_embeddings and _touches_ends(opened, names)
    if unties:
        names = names_of(replace(config, tie_embeddings=False), names.family)
    if missing := names.missing(opened.named()):
        what = first_few(missing, 1)
        raise UserError(f"{opened.path} adapts {what}, which {where} does not have: it has {names.kinds()}.")
    if len({names.module(module) for module in opened.modules}) < len(opened.modules):
        raise UserError(f"{opened.path / WEIGHTS} adapts one module under two names.")
    _require_targets(opened, names, where)
    whole = _whole(opened, names, base)
    pieces = Pieces()
    for module, tensors in opened.modules.items():
        weight = names.weights.get(names.module(module))
        if weight is None:
            raise UserError(f"{opened.path}: {module} is not a weight for {file.kind}; there are {names.kinds()}.")
        arrays = {kind: opened.tensor(name) for kind, name in tensors.items()}
        if file.kind == IA3:
            add_ia3(pieces, weight, arrays["ia3"])
            continue
        if lacking := {"A", "B", *(["magnitude"] if file.flag("use_dora") else [])} - arrays.keys():
            raise UserError(f"{opened.path} is incomplete: {WEIGHTS} has no lora_{min(lacking)} of {module}.")
        scale = add_lora(pieces, file, weight, arrays)
        if "bias" in arrays:
            _add_bias(whole, names, weight, scale * arrays["bias"], base)
    dropout = file.number("lora_dropout", file.values.get("lora_dropout") or 0.0)
    options = Options(dropout=dropout if 0 <= dropout < 1 else 0.0)
    method = "ia3" if file.kind == IA3 else "lora"
    rslora = file.kind == LORA and file.flag("use_rslora")
    return Adapter(method, pieces.stacked(names.config), options, whole, unties=unties, rslora=rslora)


def _touches_ends(opened: PeftDirectory, names: Names) -> bool:
    """Whether a tied model's table and head no longer agree under the adapter."""
    touched = {names.module(module) for module in opened.named()}
    if opened.file.flag("ensure_weight_tying") and names.head not in touched:
        return False
    return bool(touched & {names.table, names.head})


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


def _add_bias(
    whole: dict[str, np.ndarray], names: Names, weight: Any, bias: np.ndarray, base: Mapping[str, Any]
) -> None:
    """lora_bias: a bias of B, times the scale, is one more of the base's own."""
    parts = weight.split(bias[:, None])
    for module, part in zip(weight.modules, parts, strict=True):
        path = f"{module.path}/bias"
        if path not in names.leaves:
            raise UserError(f"The adapter has lora_B.bias of {weight.name}, which has no bias in the base to hold it.")
        if path not in whole:
            whole[path] = np.array(base[path], np.float32)
        if module.repeat is None:
            whole[path] = whole[path] + part[0]
        else:
            whole[path][module.repeat] += part[0]
