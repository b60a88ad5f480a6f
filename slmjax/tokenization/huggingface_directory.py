"""The tokenizer of a directory as transformers builds it: of all its files, by its class, with its special tokens.

Source: transformers 5, tokenization_utils_base.py (`_from_pretrained`) and tokenization_utils_tokenizers.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.backends import Backend, HuggingFaceBackend, SentencePieceBackend
from slmjax.tokenization.huggingface_classes import CLASSES, TokenizerClass, class_of
from slmjax.tokenization.sentencepiece_conversion import controls_of, convert, merges_by_id
from slmjax.untrusted import parse_json, read_text

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SETTINGS, SPECIAL_MAP, ADDED, CONFIG = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
_FAST, _SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
Token = str | AddedToken


def is_of_transformers(directory: Path) -> bool:
    """Whether a directory says more of its tokenizer than a vocabulary does."""
    return any((directory / name).is_file() for name in (SETTINGS, SPECIAL_MAP, ADDED, CONFIG))


@dataclasses.dataclass
class _Start:
    """A tokenizer without what the settings add to it.

    Attributes:
        tokenizer: of the vocabulary alone.
        kind: its class, None for GENERIC.
        has_processor: whether its file says what is put around a text.
        roles: special tokens that the vocabulary's file names.
        extra: special tokens of the vocabulary's file, where tokenizer_config.json lists none; None: it has no list.
        sentencepiece: the model, where the directory has nothing else.
    """

    tokenizer: tokenizers.Tokenizer
    kind: TokenizerClass | None
    has_processor: bool = False
    roles: dict[str, str] = dataclasses.field(default_factory=dict)
    extra: list[AddedToken] | None = None
    sentencepiece: bytes = b""


@dataclasses.dataclass
class _Named:
    """What the settings and the small files say of tokens: by id, by role, and the further special ones."""

    added: dict[int, AddedToken]
    roles: dict[str, Token | None]
    own: dict[str, Token]
    extra: list[Token]


def read_directory(directory: Path) -> tuple[Backend, dict[str, Any]] | None:
    """The tokenizer of a directory, and its special tokens by the names of the settings, None where there is none.

    None where the directory has no file of a name that transformers reads.

    Raises:
        UserError: a file is not what its name says.
    """
    settings, config = _object(directory / SETTINGS), _object(directory / CONFIG)
    fast = directory / _FAST
    text = read_text(fast) if fast.is_file() else None
    kind = CLASSES.get(class_of(settings, config, text is not None and '"ByteLevel"' in text))
    description = None if text is None else json.loads(text)
    start = _start(directory, settings, description, text, kind)
    if start is None:
        return None
    named = _named(directory, settings, description, start)
    backend = _plain_sentencepiece(start, named, settings)
    if backend is None:
        _add(start, named)
        _set_processor(start, named, settings, from_file=description is not None)
        backend = HuggingFaceBackend(start.tokenizer)
    return backend, _resolved(settings, named)


def _start(
    directory: Path, settings: Mapping[str, Any], description: Any, text: str | None, kind: TokenizerClass | None
) -> _Start | None:
    if description is not None and text is not None:
        padding = description.get("padding")
        roles = {"pad_token": padding["pad_token"]} if isinstance(padding, dict) else {}
        if kind is None:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        else:
            tokenizer = _rebuilt(description, kind, settings)
            roles = {} if "pad_token" in kind.roles else roles
        return _Start(tokenizer, kind, description.get("post_processor") is not None, roles)
    model = directory / _SENTENCEPIECE
    if model.is_file():
        return _of_sentencepiece(model.read_bytes(), kind, settings)
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    if vocabulary.is_file() and merges.is_file():
        # Where the class is none that reads these files it is GPT-2's, which they come from; it names no token then.
        kind = kind if kind is not None and len(kind.files) == 2 else _UNNAMED_GPT2
        plain = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
        return _Start(_rebuilt(json.loads(plain.to_str()), kind, settings), kind)
    return None


_UNNAMED_GPT2 = dataclasses.replace(CLASSES["GPT2Tokenizer"], roles={})


def _rebuilt(description: dict[str, Any], kind: TokenizerClass, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The class's tokenizer of a file's vocabulary and merges; without its added tokens.

    What the class says in other words than the file stays as the file has it, so that its fingerprint stays.
    """
    cutting = kind.cutting(settings)
    wanted = tokenizers.Tokenizer(models.BPE())
    if cutting.normalizer is not None:
        wanted.normalizer = cutting.normalizer
    wanted.pre_tokenizer, wanted.decoder = cutting.pre_tokenizer, cutting.decoder
    parts = json.loads(wanted.to_str())
    model = description["model"]
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # of unigrams, with their scores
        vocabulary = {entry[0]: id for id, entry in enumerate(vocabulary)}
    unknown = _content(settings.get("unk_token", kind.roles.get("unk_token"))) if kind.unknown else None
    flags = {"dropout": None, "unk_token": unknown, "ignore_merges": False, "byte_fallback": False, **kind.model}
    same = model.get("type", "BPE") == "BPE" and all((model.get(key) or None) == (flags[key] or None) for key in flags)
    byte_pairs = {"type": "BPE", **flags, "vocab": vocabulary, "merges": model.get("merges") or []}
    changed: dict[str, Any] = {"added_tokens": [], "model": model if same else byte_pairs}
    changed["normalizer"] = parts["normalizer"]
    for key in ("pre_tokenizer", "decoder"):
        theirs, decodes = description.get(key), key == "decoder"
        changed[key] = theirs if _means(theirs, decodes) == _means(parts[key], decodes) else parts[key]
    return tokenizers.Tokenizer.from_str(json.dumps(description | changed))


def _means(part: Any, decodes: bool) -> Any:
    """A part of a tokenizer.json without what touches neither ids nor text."""
    if isinstance(part, list):
        return [_means(item, decodes) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "ByteLevel" and decodes:
        return "ByteLevel"
    return {key: _means(item, decodes) for key, item in part.items() if key != "trim_offsets"}


def _of_sentencepiece(data: bytes, kind: TokenizerClass | None, settings: Mapping[str, Any]) -> _Start:
    model = sp.parse_sentencepiece(data)
    controls = controls_of(model)
    if kind is None:
        names = {int(id): _content(token) or "" for id, token in (settings.get("added_tokens_decoder") or {}).items()}
        roles = {
            f"{role}_token": model.roles.get(role, piece)
            for role, piece in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))
            if model.role_id(role) >= 0
        }
        own = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == sp.USER_DEFINED}
        extra = [token for token in controls if token.content not in own]
        legacy = bool(settings.get("legacy", True))
        return _Start(convert(model, names, legacy=legacy), None, roles=roles, extra=extra, sentencepiece=data)
    vocabulary = {piece: id for id, piece in enumerate(model.pieces)}
    merges = [list(pair) for pair in merges_by_id(vocabulary)]
    plain = {"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}
    return _Start(_rebuilt(plain, kind, settings), kind, extra=controls)


def _named(directory: Path, settings: Mapping[str, Any], description: Any, start: _Start) -> _Named:
    init = dict(settings)
    if "additional_special_tokens" in init and not init.get("extra_special_tokens"):
        init["extra_special_tokens"] = init.pop("additional_special_tokens")
    own: dict[str, Token] = {
        k: v for k, v in init.items() if k.endswith("_token") and k not in ROLES and isinstance(v, str)
    }
    if isinstance(init.get("extra_special_tokens"), dict):
        own |= {name: _token(token) for name, token in init.pop("extra_special_tokens").items()}
    added: dict[int, AddedToken] = {}
    if isinstance(init.get("added_tokens_decoder"), dict):
        added = {int(id): _added(token) for id, token in init["added_tokens_decoder"].items()}
    else:  # the files of older versions, and what tokenizer.json itself adds
        init |= _object(directory / SPECIAL_MAP)
        if isinstance(init.get("extra_special_tokens"), dict):
            own |= {name: _token(token) for name, token in init.pop("extra_special_tokens").items()}
        if "additional_special_tokens" in init and "extra_special_tokens" not in init and start.extra is None:
            init["extra_special_tokens"] = init["additional_special_tokens"]
        special = {_content(init.get(role)) for role in ROLES} | {
            _content(token) for token in init.get("extra_special_tokens") or []
        }
        for content, id in _object(directory / ADDED).items():
            added[int(id)] = AddedToken(content, normalized=content not in special, special=content in special)
        for token in (description or {}).get("added_tokens") or []:
            added[int(token["id"])] = _added(token)
    if start.sentencepiece and sp.parse_sentencepiece(start.sentencepiece).add_dummy_prefix:
        # Found in the text as it is, so that what follows gets a space of its own.
        added = {id: _with(token, normalized=False) for id, token in added.items()}
    by_content = {token.content: token for token in added.values()}
    roles: dict[str, Token | None] = dict.fromkeys(ROLES)
    if start.kind is not None:
        roles |= start.kind.roles
        own = {**start.kind.named, **own}
    roles |= {role: token for role, token in start.roles.items() if role not in init}
    for role in ROLES:
        if role in init:
            token = None if init[role] is None else _token(init[role])
            roles[role] = by_content.get(str(_content(token)), token)
    if "extra_special_tokens" in init:
        extra = [_token(token) for token in init["extra_special_tokens"] or []]
    else:
        extra = [*(start.extra or ()), *(start.kind.named.values() if start.kind is not None else ())]
    return _Named(added, roles, own, extra)


def _add(start: _Start, named: _Named) -> None:
    """Add the tokens in transformers' order: by id, by role, the further ones."""
    tokenizer = start.tokenizer
    tokens: list[Token] = [named.added[id] for id in sorted(named.added)]
    known = set(map(_content, tokenizer.get_added_tokens_decoder().values())) | set(map(_content, tokens))
    roles = [token for token in (*named.roles.values(), *named.own.values()) if token is not None]
    for token in (*roles, *named.extra):
        if _content(token) not in known and token not in tokens:  # with other flags it is added again, and these count
            tokens.append(token)
    flagged = {_content(token) for token in roles}
    objects = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    objects = [_with(token, special=token.special or token.content in flagged) for token in objects]
    tokenizer.add_tokens(objects)
    if start.kind is not None and start.kind.flags_roles:
        plain = start.kind.flags_roles == "plainly"
        again = [str(_content(token)) if plain else token for token in (*roles, *named.extra)]
        tokenizer.add_special_tokens([AddedToken(t, special=True) if isinstance(t, str) else t for t in again])


def _set_processor(start: _Start, named: _Named, settings: Mapping[str, Any], *, from_file: bool) -> None:
    """Put bos and eos around a text where the settings say so and what the file says does not count."""
    kind, tokenizer = start.kind, start.tokenizer
    told = {} if from_file else {key: settings[key] for key in ("add_bos_token", "add_eos_token") if key in settings}
    if kind is not None and kind.adds_bos is not None:
        told.setdefault("add_bos_token", kind.adds_bos)
    if not (told or not start.has_processor or (kind is not None and kind.replaces_processor)):
        return
    bos, eos = (_content(named.roles[role]) for role in ("bos_token", "eos_token"))
    first = [bos] if told.get("add_bos_token") and bos is not None else []
    last = [eos] if told.get("add_eos_token") and eos is not None else []
    present = tokenizer.post_processor
    if not first and not last and (present is None or not present.num_special_tokens_to_add(False)):
        return
    special = [(token, tokenizer.token_to_id(token)) for token in {*first, *last}]
    single = [*(f"{token}:0" for token in first), "$A:0", *(f"{token}:0" for token in last)]
    pair = [*single, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _plain_sentencepiece(start: _Start, named: _Named, settings: Mapping[str, Any]) -> Backend | None:
    """The model in its own library, where the settings add nothing to it."""
    if not start.sentencepiece or settings.get("legacy") is False or settings.get("add_eos_token"):
        return None
    model = sp.parse_sentencepiece(start.sentencepiece)
    own = {sp.CONTROL, sp.UNKNOWN}
    pieces = {piece: id for id, piece in enumerate(model.pieces) if model.types[id] in own}
    unknown = _content(named.roles["unk_token"]) or ""  # special there; the library knows no other way
    if sp.USER_DEFINED in model.types or model.types[pieces.get(unknown, -1)] != sp.UNKNOWN:
        return None
    if any(pieces.get(token.content) != id for id, token in named.added.items()):
        return None
    every = [*named.roles.values(), *named.own.values(), *named.extra]
    return SentencePieceBackend(start.sentencepiece) if all(_content(t) in (None, *pieces) for t in every) else None


def _resolved(settings: Mapping[str, Any], named: _Named) -> dict[str, Any]:
    tokens = {role: _content(token) for role, token in named.roles.items()}
    always = {role: tokens.pop(role) for role in ("bos_token", "eos_token", "pad_token")}
    own = {name: _content(token) for name, token in named.own.items()}
    return {**own, **always, **{role: t for role, t in tokens.items() if t is not None or role in settings}}


def _token(value: Any) -> Token:
    return value if isinstance(value, str) else _added({"special": True, **value})


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _added(value: Any) -> AddedToken:
    return AddedToken(value["content"], **{name: bool(value[name]) for name in _FLAGS if name in value})


def _with(token: AddedToken, **changed: bool) -> AddedToken:
    return AddedToken(token.content, **{name: getattr(token, name) for name in _FLAGS} | changed)


def _content(token: Any) -> str | None:
    """The text of a token in any of its forms."""
    if isinstance(token, dict):
        token = token.get("content")
    return token.content if isinstance(token, AddedToken) else token


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none."""
    content = parse_json(read_text(path), path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
