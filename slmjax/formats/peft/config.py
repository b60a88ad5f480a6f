"""adapter_config.json of Hugging Face peft, read with suspicion: what it says about tensors that lie beside it.

Nothing in it is run or fetched here. Keys that change what an adapter computes and that we cannot follow are refused,
keys of training alone are passed over. The keys are those of peft 0.17 to 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slmjax.errors import UserError, shown
from slmjax.untrusted import MAX_NAMES, MAX_RANK, Values

LORA, IA3, PREFIX, PROMPT, P_TUNING = "LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"
TOKENS = "TRAINABLE_TOKENS"
WEIGHTS = "adapter_model.safetensors"
PREFIX_OF_NAMES = "base_model.model."
EMBEDDINGS = "prompt_embeddings"
TYPES = (LORA, IA3, PREFIX, PROMPT, P_TUNING, TOKENS)
OF_WEIGHTS = (LORA, IA3, TOKENS)  # that change a base's weights

# What a file may say without changing what its tensors compute.
_COMMON = {"peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
_COMMON |= {"peft_version", "target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out", "init_weights"}
_COMMON |= {"modules_to_tie", "target_modules_to_tie"}
_OF_TYPE: dict[str, set[str]] = {
    LORA: {"r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "init_lora_weights", "layers_to_transform"}
    | {"layers_pattern", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "ensure_weight_tying"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_core"}
    | {"qalora_group_size", "velora_config", "trainable_token_indices"},
    TOKENS: {"token_indices"},
    IA3: {"feedforward_modules", "init_ia3_weights"},
}
_PROMPTS = {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
_OF_TYPE[PREFIX] = _PROMPTS | {"encoder_hidden_size", "prefix_projection"}
_OF_TYPE[PROMPT] = _PROMPTS | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"}
_OF_TYPE[PROMPT] |= {"tokenizer_kwargs", "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task"}
_OF_TYPE[P_TUNING] = _PROMPTS | {"encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers"}
_OF_TYPE[P_TUNING] |= {"encoder_dropout"}
# Initializations that leave the base as it is; the others (pissa, olora, corda, loftq, ...) take a part off it.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")


@dataclass(frozen=True)
class PeftFile:
    """An adapter_config.json, its values read with bounds."""

    path: Path  # of the config, for errors
    kind: str
    base: str | None
    values: Mapping[str, Any]

    @property
    def typed(self) -> Values:
        """The values, read with bounds."""
        return Values(self.values, str(self.path))

    def integer(self, key: str, most: int) -> int:
        """A whole number from 1 to `most`."""
        return self.typed.integer(key, least=1, most=most)

    def flag(self, key: str) -> bool:
        """A switch, off where it is not given."""
        return self.typed.flag(key)

    def names(self, key: str) -> list[str] | str | None:
        """A list of module names, or one string: a regular expression or "all-linear"."""
        value = self.values.get(key)
        return value if isinstance(value, str) else self.typed.names(key, None)

    def number(self, key: str, value: Any) -> float:
        """`value` as a finite number; `key` for the error."""
        return Values({key: value}, str(self.path)).number(key, most=1e9)

    def alpha(self, module: str) -> float:
        """LoRA's alpha of a module: the first of alpha_pattern that means it, else lora_alpha (8 where not given)."""
        return self.number("alpha_pattern", self._pattern("alpha_pattern", module, self.values.get("lora_alpha", 8)))

    def rank(self, module: str) -> int:
        """LoRA's rank of a module, as the config has it."""
        value = self._pattern("rank_pattern", module, self.values.get("r", 8))
        rank = f"the rank of {module}"
        return Values({rank: value}, str(self.path)).integer(rank, least=1, most=MAX_RANK)

    def _pattern(self, key: str, module: str, default: Any) -> Any:
        patterns = self.values.get(key) or {}
        if not isinstance(patterns, dict) or len(patterns) > MAX_NAMES:
            raise UserError(f"{self.path}: {key} is {shown(patterns)}; it must map names to numbers.")
        for pattern, value in patterns.items():
            where = f"{self.path}: {key}"
            if not is_bounded(pattern):
                raise UserError(
                    f"{where} has {pattern[:60]!r}, which repeats more than a name needs: write it plainer."
                )
            if _compiled(rf"(.*\.)?({pattern})$", where).match(module):
                return value
        return default


def peft_file(values: Mapping[str, Any], path: Path) -> PeftFile:
    """The config in `values`. UserError for kinds and switches that cannot be followed, naming them."""
    kind = values.get("peft_type")
    if kind not in TYPES:
        known = ", ".join(TYPES)
        raise UserError(f"{path}: peft_type is {shown(kind)}, which cannot be read; there are {known}.")
    task = values.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{path}: task_type is {shown(task)}; only adapters of CAUSAL_LM can be read.")
    base = values.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is {shown(base)}; it must be a name or a path.")
    for key, value in values.items():
        if key not in _COMMON | _OF_TYPE[kind] and value not in (None, False, 0, "", [], {}):
            merged = ": merge the adapter into its base with peft (merge_and_unload) and load that"
            raise UserError(
                f"{path}: {str(key)[:60]} is {shown(value)}, which this version cannot follow"
                f"{merged if kind in OF_WEIGHTS else ''}."
            )
    init = values.get("init_lora_weights")
    if kind == LORA and init not in _PLAIN_INITS:
        raise UserError(
            f"{path}: init_lora_weights={shown(init)} takes a part off the base before training: save the adapter "
            "with peft's path_initial_model_for_weight_conversion, which puts that part into it."
        )
    return PeftFile(path, kind, base or None, values)


def is_bounded(pattern: str) -> bool:
    """Whether somebody else's regular expression ends soon on any module's name.

    Python's has no time limit, and goes back through every way of sharing a name among repetitions.
    """
    few = len(pattern) <= 400 and len(re.findall(r"[*+{]", pattern)) <= 4
    return few and re.search(r"\)\s*[*+{]", pattern) is None


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether the whole name is meant by a regular expression that is bounded."""
    return _compiled(pattern, where).fullmatch(name) is not None


@lru_cache(maxsize=2 * MAX_NAMES)
def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{where} has {pattern[:80]!r}, which is not a regular expression ({error}).") from error
