"""tokenizer.huggingface.json: a key of GGUF with the whole tokenizer.json, for what the other keys have no words for.

llama.cpp does not read it. We do, so that a tokenizer comes back from a file as it went in.
"""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from slmjax.errors import UserError
from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.backends import SPACE, HuggingFaceBackend

KEY = "tokenizer.huggingface.json"
_MOST = 1 << 24  # characters: the longest string that is read back
_PROBES = ("Hello  world", " a", "   x\n y", "1234 é 日本 🦙", "\t\ta", "it's  \n\n ok")


def json_of(description: Mapping[str, Any], *, needed: bool = False) -> dict[str, str]:
    """The key of a tokenizer that the other keys describe in part; empty where they say all of it.

    needed: whatever the description says, since readers take a token for another kind by its name.
    """
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    flagged = any(token.get(flag) for token in description.get("added_tokens") or [] for flag in flags)
    model = description["model"]
    if not (needed or flagged or model.get("byte_fallback") or model.get("type") == "Unigram"):
        return {}
    text = json.dumps(description, ensure_ascii=False)
    return {KEY: text} if len(text.encode()) < _MOST else {}


def backend_from_json(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Any:
    """The tokenizer of the key, None where it is absent or is not of the file's tokens."""
    text = metadata.get(KEY)
    if not isinstance(text, str):
        return None
    tokenizer = tokenizers.Tokenizer.from_str(text)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    same = all(
        (token in ids and ids[token] == id) or kind in (sp.UNUSED, sp.USER_DEFINED)
        for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
    )
    return HuggingFaceBackend(tokenizer) if same and len(ids) <= len(tokens) else None


def of_sentencepiece_in_json(
    description: Mapping[str, Any], merges: list[str], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """The keys of SentencePiece's models as `tokenizers` writes them (Llama-2, Mistral, Gemma).

    A piece's score is the order in which it is merged, or its own in a model of unigrams.
    """
    model = description["model"]
    unigrams = model.get("type") == "Unigram"
    unknown = tokens[model["unk_id"]] if unigrams and model.get("unk_id") is not None else model.get("unk_token")
    for id, token in enumerate(tokens):
        if token == unknown:
            types[id] = sp.UNKNOWN
        elif types[id] == sp.NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[id] = sp.BYTE
    before = json.dumps([description.get("normalizer"), description.get("pre_tokenizer")], ensure_ascii=False)
    if SPACE not in before:
        raise UserError("GGUF has no name for how this tokenizer cuts or normalizes text before it merges.")
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    if unigrams:
        own = [float(score) for _, score in model["vocab"]]
        scores = [own[id] if id < len(own) else 0.0 for id in range(len(tokens))]
    found: dict[str, Any] = {
        "model": "t5" if unigrams else "llama",
        "pre": "default",
        "tokens": raw_spaces(tokens, types),
        "token_type": types,
        "scores": scores,
        "add_space_prefix": '"Prepend"' in before or ('"Metaspace"' in before and '"never"' not in before),
        "remove_extra_whitespaces": '" {2,}"' in before,
    }
    charsmap = re.search(r'"precompiled_charsmap": "([^"]*)"', before)
    if charsmap is not None and charsmap[1]:
        found["precompiled_charsmap"] = np.frombuffer(base64.b64decode(charsmap[1]), np.uint8)
    return found


def raw_spaces(tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """Pieces as GGUF has them: those of the user stand in the text as it is, with spaces in place of their signs."""
    taken = set(tokens)
    raw = (
        token.replace(SPACE, " ") if kind == sp.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    )
    return [new if new not in taken else token for new, token in zip(raw, tokens, strict=True)]


def escaped_spaces(tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """The pieces of a file as SentencePiece has them."""
    taken = set(tokens)
    new = (
        token.replace(" ", SPACE) if kind == sp.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    )
    return [piece if piece not in taken else token for piece, token in zip(new, tokens, strict=True)]


def warn_of_difference(ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]]) -> None:
    """Tell of a text that llama.cpp, which reads the other keys alone, encodes otherwise."""
    different = next((text for text in _PROBES if ours(text) != theirs(text)), None)
    if different is not None:
        warnings.warn(
            f"llama.cpp encodes some texts otherwise than this tokenizer, {different!r} for one; slmjax reads the file "
            "as it was written.",
            stacklevel=4,
        )
