"""The tokenizer of a Hugging Face directory: what transformers keeps of it beyond the vocabulary."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import tokenizers

from slmjax.errors import UserError, one_line
from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.backends import HuggingFaceBackend
from slmjax.tokenization.huggingface_classes import GENERIC, class_of
from slmjax.tokenization.named_templates import named_templates, read_templates, template_setting, write_templates
from slmjax.tokenization.sentencepiece_conversion import convert
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from slmjax.untrusted import Values, inside, read_json

CONFIG = "config.json"
SETTINGS = "tokenizer_config.json"
VOCABULARY = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
_SUFFIXES = (".json", ".model", ".txt", ".jinja")
# Of the settings of another directory or version: the class that cannot be found elsewhere, code, places on a disk.
_DROPPED = {"tokenizer_class", "auto_map", "backend", "is_local", "name_or_path", "tokenizer_file", "processor_class"}
_DROPPED |= {"special_tokens_map_file", "chat_template"}


def read(directory: Path, *, as_saved: bool = False) -> Tokenizer:
    """A directory's tokenizer as transformers reads it.

    Its chat template, and whether it begins texts with the bos token, are in `settings`.

    as_saved: take its file as it is, see `load_tokenizer`.
    """
    for path in directory.iterdir():
        if path.suffix in _SUFFIXES and path.is_symlink():
            inside(directory, path.name)
    tokenizer = load_tokenizer(directory, as_saved=as_saved)
    if templates := read_templates(directory):
        tokenizer.settings["chat_template"] = template_setting(templates)
    settings, bos = tokenizer.settings, tokenizer.bos_id
    if (directory / VOCABULARY).is_file():
        first, _ = tokenizer.added_around()
        settings["add_bos_token"] = bos is not None and bos in first
        tokenizer.begin_ids = tuple(first) if first != [bos] else ()
    else:
        first, _ = tokenizer.added_around()  # of a tokenizer that was put together of several files
        settings["add_bos_token"] = bos is not None and (bos in first or settings.get("add_bos_token") is True)
    return tokenizer


def is_there(directory: Path) -> bool:
    """Whether a directory has a tokenizer's file at all: a model may come without."""
    return any(any(directory.glob(pattern)) for pattern in ("*tokenizer.json", "*.model", "*vocab.json", "*merges.txt"))


def write(tokenizer: Tokenizer, directory: Path, context_length: int) -> None:
    """Write the vocabulary, the settings with a class that transformers 4 and 5 know, and the template in both places.

    The template is in tokenizer_config.json for transformers 4 and for servers, in its own file for transformers 5.
    """
    tokenizer.save(directory)
    settings = {key: value for key, value in read_json(directory / SETTINGS).items() if key not in _DROPPED}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if not (directory / VOCABULARY).exists():
        _convert(directory / SENTENCEPIECE, directory / VOCABULARY)
    settings.setdefault("clean_up_tokenization_spaces", False)  # whose default in transformers 4 rewrites texts
    longest = settings.get("model_max_length")
    settings["model_max_length"] = min(longest, context_length) if isinstance(longest, int) else context_length
    templates = named_templates(tokenizer.settings.get("chat_template"))
    if templates:
        settings["chat_template"] = template_setting(templates)
        write_templates(templates, directory)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (directory / SETTINGS).write_text(text + "\n", encoding="utf-8")
    if settings.get("add_bos_token") is True and tokenizer.bos_id is not None:
        _begin_with_bos(directory / VOCABULARY, settings["bos_token"], tokenizer.bos_id)
    _warn_of_class(directory)


def changes(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    """Settings with which `undo_changes` reads this very tokenizer back from the files that were written of it.

    "settings": those that the files say otherwise; "without": names of those that only they have; "post_processor": the
    tokenizer's own, where the file's puts the bos token first.
    """
    again = read(directory, as_saved=True)
    changed: dict[str, Any] = {}
    missing = object()
    settings = {key: v for key, v in tokenizer.settings.items() if again.settings.get(key, missing) != v}
    without = [key for key in again.settings if key not in tokenizer.settings]
    if again.fingerprint != tokenizer.fingerprint:
        with tempfile.TemporaryDirectory() as original:
            tokenizer.save(original)
            if (Path(original) / SENTENCEPIECE).exists():
                changed["file"] = SENTENCEPIECE
            else:
                changed["post_processor"] = read_json(Path(original) / VOCABULARY).get("post_processor")
    return {**changed, "settings": settings, "without": without}


def undo_changes(directory: Path, changed: Values) -> Tokenizer:
    """The tokenizer of which a directory was written; see `changes`."""
    if changed.get("file") == SENTENCEPIECE:
        inside(directory, SENTENCEPIECE)
        tokenizer = load_tokenizer(directory / SENTENCEPIECE)
    else:
        tokenizer = read(directory, as_saved=True)
    settings = {**tokenizer.settings, **changed.table("settings")}
    for key in changed.names("without", []):
        settings.pop(key, None)
    if "post_processor" in changed.mapping and (directory / VOCABULARY).is_file():
        description = read_json(inside(directory, VOCABULARY)) | {"post_processor": changed.get("post_processor")}
        try:
            backend = HuggingFaceBackend(tokenizers.Tokenizer.from_str(json.dumps(description)))
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"{changed.where} gives its tokenizer a wrong post_processor: {one_line(error)}."
            ) from error
        tokenizer = Tokenizer(backend, settings)
    tokenizer.settings = settings
    return tokenizer


def _convert(model: Path, destination: Path) -> None:
    """A tokenizer.json that encodes as a SentencePiece model does: its classes in transformers do not in all cases."""
    parsed = sp.parse_sentencepiece(model.read_bytes())
    tokenizer = convert(parsed, {}, legacy=True)
    special = (sp.CONTROL, sp.UNKNOWN)
    pieces = [piece for piece, kind in zip(parsed.pieces, parsed.types, strict=True) if kind in special]
    tokenizer.add_special_tokens([tokenizers.AddedToken(piece, normalized=False, special=True) for piece in pieces])
    destination.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _warn_of_class(directory: Path) -> None:
    """Tell where transformers will cut text otherwise: of some models it takes its own class whatever is written."""
    config = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else {}
    name = class_of(read_json(directory / SETTINGS), config, byte_level=True)
    if name == GENERIC:
        return
    ours, theirs = load_tokenizer(directory, as_saved=True), load_tokenizer(directory)
    if ours.fingerprint != theirs.fingerprint:
        warnings.warn(
            f"transformers reads the tokenizer of every {config.get('model_type')} model with its class {name}, which "
            "cuts some texts otherwise than this one: load it there with PreTrainedTokenizerFast.from_pretrained.",
            stacklevel=3,
        )


def _first_tokens(processor: Any) -> list[Any]:
    """The special tokens with which a post-processor begins a text."""
    if not isinstance(processor, dict):
        return []
    if isinstance(processor.get("processors"), list):
        return [token for part in processor["processors"] for token in _first_tokens(part)]
    single = processor.get("single")
    first = single[0] if isinstance(single, list) and single else None
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    return [special.get("id")] if isinstance(special, dict) else []


def _begin_with_bos(path: Path, token: str, id: int) -> None:
    """Add to a tokenizer.json what puts the bos token first, where nothing does."""
    description = read_json(path)
    present = description.get("post_processor")
    if token in _first_tokens(present):
        return
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }
    both = {"type": "Sequence", "processors": [present, template]}
    description["post_processor"] = template if present is None else both
    path.write_text(json.dumps(description, indent=2, ensure_ascii=False), encoding="utf-8")
