"""A directory of Hugging Face peft as an adapter of ours: LoRA and kin, IA3, prefix and prompt tuning, P-tuning.

Here its files are opened and sorted by what each tensor belongs to; `weights.py` puts them on a base.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.adapters.adapter import Adapter
from slmjax.formats.adapters.names import Names, without_layers
from slmjax.formats.adapters.pieces import Misfit
from slmjax.formats.peft.collect import prefix_of, prompt_of
from slmjax.formats.peft.config import (
    EMBEDDINGS,
    IA3,
    LORA,
    OF_WEIGHTS,
    PREFIX,
    PREFIX_OF_NAMES,
    TOKENS,
    WEIGHTS,
    PeftFile,
    peft_file,
)
from slmjax.formats.peft.weights import read_weights
from slmjax.formats.recognition import ADAPTER_CONFIG
from slmjax.formats.safetensors_files import SafetensorsDirectory
from slmjax.formats.tensor_names import unwrapped
from slmjax.formats.weight_map import warn_of_nan
from slmjax.models.parameters import Params, flatten
from slmjax.untrusted import inside, read_json

PICKLE = "adapter_model.bin"
# A tensor's name -> its module, and what it is of it.
_KINDS = (
    (r"(.*)\.lora_A\.weight", "A"),
    (r"(.*)\.lora_B\.weight", "B"),
    (r"(.*)\.lora_B\.bias", "bias"),
    (r"(.*)\.lora_embedding_A", "A"),
    (r"(.*)\.lora_embedding_B", "B"),
    (r"(.*)\.lora_magnitude_vector(?:\.weight)?", "magnitude"),
    (r"(.*)\.ia3_l", "ia3"),
    (r"(.*?)(?:\.token_adapter)?\.trainable_tokens_delta", "tokens"),
)
# peft's own copies of a module that is trained wholly: what it was, and (beside the plain name) what it became.
_ORIGINAL = re.compile(r".*\.(original_module|token_adapter\.trainable_tokens_original)\b.*")
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)")
_WRAPPED = re.compile(r"(\.token_adapter)?\.base_layer(?=\.)")


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
        if self.file.kind not in OF_WEIGHTS:
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
            if self.file.kind not in OF_WEIGHTS:
                rows = self.tensor(EMBEDDINGS)
                return prompt_of(self.file, rows, config, params, names.family.model_type)
            return read_weights(self, names, flatten(params), where)
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
    if file.kind not in OF_WEIGHTS:
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
    rest = unwrapped(name.removeprefix(PREFIX_OF_NAMES))
    if _ORIGINAL.fullmatch(rest):
        return
    for pattern, kind in _KINDS:
        if found := re.fullmatch(pattern, rest):
            of_module = opened.modules.setdefault(found[1], {})
            fits = opened.file.kind == TOKENS if kind == "tokens" else opened.file.kind != TOKENS
            fits = fits or (kind == "tokens" and opened.file.kind == LORA)
            if not fits or (kind == "ia3") != (opened.file.kind == IA3) or kind in of_module:
                raise _unexpected(opened, name)
            of_module[kind] = name
            return
    if not rest.endswith((".weight", ".bias")) or ".lora_" in rest:
        raise _unexpected(opened, name)
    saved = _SAVED.search(rest) is not None
    rest = _WRAPPED.sub("", _SAVED.sub("", rest))
    if rest in opened.whole and not saved:
        if _SAVED.search(opened.whole[rest]) is None:
            raise _unexpected(opened, name)
        return  # the same, under peft's other name
    opened.whole[rest] = name
