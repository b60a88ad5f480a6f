"""Ends, beginnings and settings of a GGUF file's model: its keys, and what llama.cpp takes for granted.

llama.cpp has a key for one end of text, of turn and of message each, looks for tokens by their well-known names
besides, whatever type the file gives them, and has defaults where keys are absent. Files of ours say all of a model's
stop ids and settings in keys of their own too. Source: llama.cpp's src/llama-vocab.cpp; gguf's constants.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.gguf.keys import Keys
from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.untrusted import MAX_NAMES, require_bounded

_PREFIX = "tokenizer.ggml"
_STOP_IDS, _SETTINGS = "slmjax.stop_ids", "slmjax.generation_config"
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_FILL_ENDS = ("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
# Tokens that end what a model says wherever a vocabulary has them.
_END_NAMES = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<end_of_utterance>", "<turn|>", "<|tool_response>"),
)
# DeepSeek's end is one where no other end of a turn is found; those of filling in the middle end what is filled in.
_TURN_NAMES = ("<\uff5cend▁of▁sentence\uff5c>",)
_FILL_NAMES = (
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)
_CONTROL_NAMES = {*_END_NAMES, *_TURN_NAMES}
# Of other writers' files alone: Qwen's own tokenizer has these as text.
_FILL_CONTROL_NAMES = {*(name for names in _FILL_NAMES for name in names)}
_FILL_CONTROL_NAMES |= {
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<fim-prefix>",
    "<fim-suffix>",
    "<fim-middle>",
}
_FILL_CONTROL_NAMES |= {"<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<PRE>", "<SUF>", "<MID>"}
_FILL_CONTROL_NAMES |= {"<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"}
# Pre-tokenizers whose texts begin with the bos token where add_bos_token is absent.
_ADD_BOS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
_ADD_BOS |= {"tekken", "chameleon"}
ABSENT = "slmjax.absent_tokens"  # roles that the tokenizer does not have, though readers take one for granted
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0}  # of a SentencePiece vocabulary whose file has no key for them
# llama.cpp's key of a setting -> transformers'
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SAMPLING |= {"penalty_repeat": "repetition_penalty"}


def adds_bos(keys: Keys) -> bool:
    """Whether texts begin with the bos token where a file does not say it."""
    return keys.text("model", "gpt2") == "llama" or keys.text("pre", "") in _ADD_BOS


def implied_id(keys: Keys, role: str, tokens: Sequence[str]) -> int | None:
    """The id of a role whose key is absent: those of LLaMA's vocabulary, where a file has its kind and its tokens."""
    absent = keys.metadata.get(ABSENT)
    if isinstance(absent, list) and role in absent:
        return None
    id = _LLAMA_IDS.get(role) if keys.text("model", "gpt2") == "llama" else None
    types = keys.values.get("token_type")
    if id is None or id >= len(tokens) or not isinstance(types, np.ndarray) or id >= len(types):
        return None
    return id if int(types[id]) in (sp.CONTROL, sp.UNKNOWN) else None


def corrected_types(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """The tokens' types as llama.cpp has them: control where a name says so, whatever the file says."""
    names = _CONTROL_NAMES if _STOP_IDS in metadata else _CONTROL_NAMES | _FILL_CONTROL_NAMES
    plain = (sp.NORMAL, sp.USER_DEFINED)
    kinds = [int(kind) for kind in types[: len(tokens)]]
    return [sp.CONTROL if t in names and k in plain else k for t, k in zip(tokens, kinds, strict=True)]


def stop_ids_from(
    metadata: Mapping[str, Any], tokenizer: Tokenizer | None, vocab_size: int, where: str
) -> tuple[int, ...]:
    """The ids at which generation from a file's model ends: those that we wrote, else its keys', and ends by name."""
    if (ours := metadata.get(_STOP_IDS)) is not None:
        kind = getattr(ours, "dtype", np.dtype("f4")).kind
        if kind not in "iu" or len(ours) > MAX_NAMES or not all(0 <= id < vocab_size for id in ours):
            raise UserError(f"{where}: the key {_STOP_IDS} must list token ids.")
        return tuple(dict.fromkeys([*(int(id) for id in ours), *_named_ends(tokenizer)]))
    keys = Keys(metadata, _PREFIX, where)
    named = [keys.integer(key, None) for key in (*_ENDS, *_FILL_ENDS)]
    named += _named_ends(tokenizer) + _other_ends(tokenizer, metadata)
    named += [] if tokenizer is None or tokenizer.eos_id is None else [tokenizer.eos_id]
    size = vocab_size if tokenizer is None else tokenizer.vocab_size
    return tuple(dict.fromkeys(id for id in named if id is not None and id < size))


def stop_ids_to(stop_ids: Sequence[int], tokenizer: Tokenizer | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model's stop ids: our own for all of them, and llama.cpp's for as many as it has keys.

    metadata: of the file so far, whose eos is kept. Warnings name the tokens that llama.cpp will not stop at, and those
    that it stops at without being told.
    """
    eos, named = metadata.get(f"{_PREFIX}.{_ENDS[0]}"), _named_ends(tokenizer)
    if more := [id for id in named if id not in (*stop_ids, eos)]:
        names = ", ".join(str(tokenizer.id_to_token(id)) for id in more[:3]) if tokenizer is not None else ""
        warnings.warn(f"A model in a GGUF file also stops at {names}: their names say so to llama.cpp.", stacklevel=3)
    if not stop_ids:
        return {}
    known = {eos, *named}
    free = [key for key in _ENDS if f"{_PREFIX}.{key}" not in metadata]
    rest = [id for id in stop_ids if id not in known]
    if len(rest) > len(free):
        names = ", ".join(str(id) for id in rest[len(free) :][:3])
        warnings.warn(f"GGUF has keys for {len(_ENDS)} ends: llama.cpp will not stop at the ids {names}.", stacklevel=3)
    return {
        _STOP_IDS: np.array(stop_ids, np.int32),
        **{f"{_PREFIX}.{key}": int(id) for key, id in zip(free, rest, strict=False)},
    }


def settings_from(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of generation_config.json: those that we wrote, else what llama.cpp has keys for."""
    ours = metadata.get(_SETTINGS)
    if isinstance(ours, str):
        try:
            values = json.loads(ours)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: the key {_SETTINGS} is not readable as JSON ({error}).") from error
        if not isinstance(values, dict):
            raise UserError(f"{where}: the key {_SETTINGS} holds no JSON object.")
        require_bounded(values, _SETTINGS, where)
        return values
    keys = Keys(metadata, "general.sampling", where)
    found = {theirs: keys.values.get(key) for key, theirs in _SAMPLING.items()}
    found = {name: keys.number(key, None) for key, name in _SAMPLING.items() if found[name] is not None}
    if "top_k" in found:
        found["top_k"] = keys.integer("top_k", 0)
    return {"do_sample": True, **found} if found else {}


def settings_to(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model's settings: our own for all of them, and llama.cpp's where tokens are drawn."""
    if not settings:
        return {}
    keys: dict[str, Any] = {_SETTINGS: json.dumps(dict(settings), ensure_ascii=False)}
    for key, name in _SAMPLING.items() if settings.get("do_sample") is True else ():
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            keys[f"general.sampling.{key}"] = int(value) if key == "top_k" else float(value)
    return keys


def _named_ends(tokenizer: Tokenizer | None) -> list[int]:
    """The tokens that end what a model says by their names."""
    special = {} if tokenizer is None else tokenizer.special_tokens()
    ends = [special[name] for name in _END_NAMES if name in special]
    if "<|return|>" in special and {"<|call|>", "<|calls|>"} & special.keys():
        ends = [id for id in ends if id != special.get("<|end|>")]  # of a message there, not of what is said
    return ends


def _other_ends(tokenizer: Tokenizer | None, metadata: Mapping[str, Any]) -> list[int]:
    """The tokens that llama.cpp makes ends where a file has no key of the kind: of turns, of filling in the middle."""
    special = {} if tokenizer is None else tokenizer.special_tokens()
    ends: list[int] = []
    if f"{_PREFIX}.eot_token_id" not in metadata and not any(name in special for name in _END_NAMES):
        ends += [special[name] for name in _TURN_NAMES if name in special]
    for key, names in zip(_FILL_ENDS, _FILL_NAMES, strict=True):
        if f"{_PREFIX}.{key}" not in metadata:
            ends += [special[name] for name in names if name in special][:1]
    return ends
