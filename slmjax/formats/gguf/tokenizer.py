"""The tokenizer inside a GGUF file: tokens, types, merges or scores, made into a Tokenizer and back."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from slmjax.errors import UserError, shown
from slmjax.formats.gguf.ends import ABSENT, adds_bos, corrected_types, implied_id
from slmjax.formats.gguf.keys import Keys
from slmjax.formats.gguf.pretokenizers import PRE_TOKENIZERS, name_of
from slmjax.formats.gguf.tokenizer_json import (
    backend_from_json,
    escaped_spaces,
    json_of,
    of_sentencepiece_in_json,
    raw_spaces,
    warn_of_difference,
)
from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.backends import HuggingFaceBackend, SentencePieceBackend
from slmjax.tokenization.named_templates import DEFAULT, named_templates, template_setting
from slmjax.tokenization.tokenizer import Tokenizer

_PADDING = re.compile(r"\[PAD\d+\]")
_PREFIX = "tokenizer.ggml"
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
_TEMPLATE, _TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
NO_TOKENIZER = {f"{_PREFIX}.model": "none"}
_MODELS = {"llama": sp.BPE, "t5": sp.UNIGRAM}  # SentencePiece's algorithms under llama.cpp's names


def tokenizer_from(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a file; UserError where it has none, or one that makes no sense."""
    keys = Keys(metadata, _PREFIX, where)
    tokens = metadata.get(f"{_PREFIX}.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{where} holds no tokenizer: {_PREFIX}.tokens is missing.")
    types = _numbers(keys, "token_type", len(tokens), sp.NORMAL)
    settings = _settings(metadata, keys, tokens)
    while tokens and types[len(tokens) - 1] == sp.UNUSED and _PADDING.fullmatch(tokens[-1]):
        tokens = tokens[:-1]  # rows of the embedding that no token uses
    kinds = corrected_types(metadata, tokens, types.tolist())
    model = keys.text("model", "gpt2")
    try:
        if (exact := backend_from_json(metadata, tokens, kinds)) is not None:
            return Tokenizer(exact, settings)
        if model == "gpt2":
            return Tokenizer(HuggingFaceBackend(_byte_level(metadata, keys, tokens, kinds)), settings)
        if model in _MODELS:
            scores = _numbers(keys, "scores", len(types), 0.0)[: len(tokens)]
            return Tokenizer(_sentencepiece(metadata, keys, tokens, kinds, scores, _MODELS[model]), settings)
    except UserError:
        raise
    except Exception as error:  # the libraries raise plain Exception, RuntimeError ... for what they cannot use
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} holds a tokenizer that cannot be used ({reason}).") from error
    raise keys.error("model", f"is {model[:40]!r}; gpt2, llama and t5 are supported")


def tokenizer_to(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys of a tokenizer for a model of `vocab_size` tokens.

    Raises:
        UserError: the tokenizer has more tokens than the model, or does what GGUF has no name for.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"The tokenizer has {tokenizer.vocab_size} tokens, more than the model's {vocab_size}.")
    exact: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(name)
        model, description = Path(name) / "tokenizer.model", Path(name) / "tokenizer.json"
        if model.is_file():
            found = _of_sentencepiece(sp.parse_sentencepiece(model.read_bytes()))
        else:
            described = json.loads(description.read_text(encoding="utf-8"))
            found = _of_hugging_face(described)
            corrected = corrected_types({}, found["tokens"], found["token_type"]) != list(found["token_type"])
            exact = json_of(described, needed=corrected)
    tokens, types = found.pop("tokens"), found.pop("token_type")
    padding = range(len(tokens), vocab_size)
    keys: dict[str, Any] = {
        **found,
        "tokens": tokens + [f"[PAD{i}]" for i in padding],
        "token_type": np.array(types + [sp.UNUSED] * len(padding), np.int32),
        "add_bos_token": bool(tokenizer.settings.get("add_bos_token", False)),
        "add_eos_token": False,
    }
    if "scores" in keys:
        keys["scores"] = np.array([*keys["scores"], *[-1e4] * len(padding)], np.float32)
    for role, key in _ROLES.items():
        id = _id_of(tokenizer, role, types)
        if id is not None:
            keys[key] = id
    out = {f"{_PREFIX}.{key}": value for key, value in keys.items()}
    written = Keys(out, _PREFIX, "The file")
    absent = [r for r, key in _ROLES.items() if key not in keys and implied_id(written, r, tokens) is not None]
    out |= {ABSENT: absent} if absent else {}
    if exact:
        warn_of_difference(tokenizer.encode, tokenizer_from(out, "The file").encode)
    return out | exact | _templates_to(named_templates(tokenizer.settings.get("chat_template")))


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a file has a tokenizer: llama.cpp writes the model "no_vocab" or "none" into those that have none."""
    model = metadata.get(f"{_PREFIX}.model")
    return f"{_PREFIX}.tokens" in metadata or not (model is None or shown(model) in ("'none'", "'no_vocab'"))


def _settings(metadata: Mapping[str, Any], keys: Keys, tokens: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for role, key in _ROLES.items():
        id = keys.integer(key, implied_id(keys, role, tokens))
        settings[f"{role}_token"] = tokens[id] if id is not None and id < len(tokens) else None
    settings["add_bos_token"] = keys.flag("add_bos_token", adds_bos(keys))
    templates = template_setting(_templates_from(metadata))
    return settings | ({} if templates is None else {"chat_template": templates})


def _templates_from(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: the default one, and those that tokenizer.chat_templates names."""
    names = metadata.get(_TEMPLATES)
    keys = {DEFAULT: _TEMPLATE} | {name: f"{_TEMPLATE}.{name}" for name in (names if isinstance(names, list) else [])}
    return {name: metadata[key] for name, key in keys.items() if isinstance(metadata.get(key), str)}


def _templates_to(templates: Mapping[str, str]) -> dict[str, Any]:
    others = {re.sub(r"[^\w.-]", "_", name): text for name, text in templates.items() if name != DEFAULT}
    keys: dict[str, Any] = {_TEMPLATE: templates[DEFAULT]} if DEFAULT in templates else {}
    keys |= {f"{_TEMPLATE}.{name}": text for name, text in others.items()}
    return keys | ({_TEMPLATES: list(others)} if others else {})


def _numbers(keys: Keys, key: str, count: int, default: float) -> np.ndarray:
    values = keys.metadata.get(f"{_PREFIX}.{key}")
    if values is None:
        return np.full(count, default)
    if not isinstance(values, np.ndarray) or len(values) != count or not np.isfinite(values).all():
        raise keys.error(key, f"does not list a finite number for each of the {count} tokens")
    return values


def _byte_level(metadata: Mapping[str, Any], keys: Keys, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding: GPT-2 and its heirs."""
    name = keys.text("pre", "default")
    if name not in PRE_TOKENIZERS:
        raise keys.error("pre", f"is {name[:40]!r}; known are {', '.join(PRE_TOKENIZERS)}")
    pre = PRE_TOKENIZERS[name]
    merges = metadata.get(f"{_PREFIX}.merges")
    if not isinstance(merges, list):
        raise keys.error("merges", "is missing")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: id for id, token in enumerate(tokens) if token}
    for left, right in pairs:  # the library panics, beyond any except, on some of these
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise keys.error("merges", f"joins {left[:40]!r} and {right[:40]!r}, which are not tokens or give none")
    model = tokenizers.models.BPE(vocabulary, pairs, ignore_merges=pre.ignore_merges)
    tokenizer = tokenizers.Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = pre.build()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    named = list(zip(tokens, types, strict=True))
    added = [t for t, kind in named if kind == sp.USER_DEFINED and t]
    special = [t for t, kind in named if kind in (sp.CONTROL, sp.UNKNOWN) and t]
    tokenizer.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in added])
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def _sentencepiece(
    metadata: Mapping[str, Any], keys: Keys, tokens: list[str], types: list[int], scores: np.ndarray, algorithm: int
) -> SentencePieceBackend:
    if sp.UNKNOWN not in types:  # the library asks for exactly one
        types[min(keys.integer("unknown_token_id", 0), len(types) - 1)] = sp.UNKNOWN
    charsmap = metadata.get(f"{_PREFIX}.precompiled_charsmap")
    unknown = tokens[types.index(sp.UNKNOWN)]
    ids = {role: keys.integer(key, len(tokens)) for role, key in _ROLES.items() if role != "unk"}
    model = sp.SentencePieceModel(
        escaped_spaces(tokens, types),
        [float(s) for s in scores],
        types,
        algorithm,
        keys.flag("add_space_prefix", True),
        keys.flag("remove_extra_whitespaces", False),
        charsmap.tobytes() if isinstance(charsmap, np.ndarray) else b"",
        {"unk": unknown} | {role: tokens[id] for role, id in ids.items() if id < len(tokens)},
    )
    return SentencePieceBackend(model.to_bytes())


def _of_sentencepiece(model: sp.SentencePieceModel) -> dict[str, Any]:
    names = {algorithm: name for name, algorithm in _MODELS.items()}
    if model.algorithm not in names:
        raise UserError("GGUF has no name for a SentencePiece model of words or characters.")
    found: dict[str, Any] = {"model": names[model.algorithm], "pre": "default"}
    if model.charsmap and model.algorithm == sp.BPE:
        warnings.warn("llama.cpp ignores how this tokenizer normalizes text: rare characters may differ.", stacklevel=3)
    if model.charsmap:
        found["precompiled_charsmap"] = np.frombuffer(model.charsmap, np.uint8)
    return found | {
        "tokens": raw_spaces(model.pieces, model.types),
        "scores": list(model.scores),
        "token_type": list(model.types),
        "add_space_prefix": model.add_dummy_prefix,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
    }


def _of_hugging_face(description: dict[str, Any]) -> dict[str, Any]:
    model = description["model"]
    if model.get("type", "BPE") not in ("BPE", "Unigram"):
        raise UserError(f"GGUF holds byte-pair tokenizers; this one is of type {model.get('type')}.")
    unigrams = model.get("type") == "Unigram"
    vocabulary: dict[str, int] = model["vocab"]
    if unigrams:
        vocabulary = {piece: id for id, (piece, _) in enumerate(model["vocab"])}
    added = {token["id"]: token for token in description.get("added_tokens") or []}
    names = {id: token for token, id in vocabulary.items()} | {id: token["content"] for id, token in added.items()}
    size = max(names) + 1
    tokens = [names.get(id, f"[PAD{id}]") for id in range(size)]
    types = [sp.NORMAL if id in names else sp.UNUSED for id in range(size)]
    for id, token in added.items():
        types[id] = sp.CONTROL if token["special"] else sp.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    if unigrams or model.get("byte_fallback"):
        return of_sentencepiece_in_json(description, merges, tokens, types)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    normalizer = description.get("normalizer") or {"type": None}
    ignore = bool(model.get("ignore_merges"))
    pre = None
    if normalizer["type"] in (None, "NFC") and tokenizer.pre_tokenizer is not None:
        pre = name_of(tokenizer.pre_tokenizer, nfc=normalizer["type"] == "NFC", ignore_merges=ignore)
    if pre is None:
        raise UserError("GGUF has no name for how this tokenizer cuts or normalizes text before it merges.")
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}


def _id_of(tokenizer: Tokenizer, role: str, types: list[int]) -> int | None:
    if role != "unk":
        return getattr(tokenizer, f"{role}_id")
    token = tokenizer.settings.get("unk_token")
    token = token.get("content") if isinstance(token, dict) else token
    id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return types.index(sp.UNKNOWN) if id is None and sp.UNKNOWN in types else id
