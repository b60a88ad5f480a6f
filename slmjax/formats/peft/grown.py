"""The network that an adapter makes of its base: rows for new tokens, biases that LoRA's B has, a head of its own.

peft's user resizes the base before it puts such an adapter on it; what the adapter's file holds says how, so that the
plain base does here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from slmjax.errors import UserError
from slmjax.formats.adapters.pieces import Misfit
from slmjax.formats.huggingface.export import family_or_none
from slmjax.formats.peft.config import PeftFile
from slmjax.models.config import ModelConfig
from slmjax.untrusted import MAX_SIZE, Values

_BIASES = {"attention/q_proj": "qkv_bias", "attention/k_proj": "qkv_bias", "attention/v_proj": "qkv_bias"}
_BIASES |= {"attention/o_proj": "attention_output_bias", "lm_head": "head_bias"}
_BIASES |= {f"feedforward/{name}": "ffn_bias" for name in ("gate_proj", "up_proj", "down_proj")}


def with_rows(config: ModelConfig, rows: Mapping[str, int], tokens: Iterable[int], *, follows: bool) -> ModelConfig:
    """The network with as many tokens as the adapter's table or head has rows, or as its new tokens' ids ask for.

    rows: of the table and the head, where the file holds them whole. follows: the base's head is its table.

    Misfit where the two disagree, or where the head of an untied network is left behind.
    """
    if len(set(rows.values())) > 1:
        shown = " and ".join(f"{count} in {name}" for name, count in rows.items())
        raise Misfit(f"the tokens are {shown}")
    last = max(tokens, default=-1)
    if not rows:
        if last >= config.vocab_size:
            raise Misfit(f"it trains token {last}, and there are {config.vocab_size} tokens here")
        return config
    (count,) = set(rows.values())
    if count != config.vocab_size and not follows and len(rows) < 2:
        given = next(iter(rows))
        raise Misfit(f"{given} has {count} tokens there, {config.vocab_size} here, and only it is given")
    if last >= count:
        raise Misfit(f"it trains token {last}, and there are {count} tokens")
    return replace(config, vocab_size=count)


def with_biases(config: ModelConfig, modules: Iterable[str]) -> ModelConfig:
    """The network in which these modules of ours add a bias, as a family of transformers has it where one does."""
    kinds = {next((k for k in _BIASES if module.endswith(k)), "") for module in modules}
    if "" in kinds:
        raise UserError("The adapter has lora_B.bias of a table, which adds none.")
    switches = {_BIASES[kind] for kind in kinds}
    if all(getattr(config, switch) for switch in switches):
        return config
    attention = switches | {"qkv_bias", "attention_output_bias"}
    wider = [switches, attention, attention | {"ffn_bias"}]
    grown = [replace(config, **dict.fromkeys(more, True)) for more in wider]  # type: ignore[arg-type]
    return next((each for each in grown if family_or_none(each) is not None), grown[0])


def token_indices(file: PeftFile, module: str) -> list[int]:
    """The ids of the tokens that an adapter replaces in a table or head, as its config lists them."""
    listed: Any = file.values.get("token_indices" if file.kind == "TRAINABLE_TOKENS" else "trainable_token_indices")
    if isinstance(listed, dict):
        means = [key for key in listed if module == key or module.endswith(f".{key}")]
        listed = listed[means[0]] if means else None
    if not isinstance(listed, list) or not all(type(id) is int and 0 <= id < MAX_SIZE for id in listed):
        raise Values(file.values, str(file.path)).error("trainable_token_indices", "must list token ids")
    return listed
