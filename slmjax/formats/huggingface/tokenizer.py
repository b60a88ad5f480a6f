"""The tokenizer of a Hugging Face directory: what transformers keeps of it beyond the vocabulary."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers

from slmjax.errors import UserError, one_line
from slmjax.tokenization.backends import HuggingFaceBackend
from slmjax.tokenization.named_templates import named_templates, read_templates, template_setting, write_templates
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from slmjax.untrusted import Values, inside, read_json

SETTINGS = "tokenizer_config.json"
VOCABULARY = "tokenizer.json"
_SUFFIXES = (".json", ".model", ".txt", ".jinja")
# Of the settings of another directory or version: the class that cannot be found elsewhere, code, places on a disk.
_DROPPED = {"tokenizer_class", "auto_map", "backend", "is_local", "name_or_path", "tokenizer_file", "processor_class"}
_DROPPED |= {"special_tokens_map_file", "chat_template"}


def read(directory: Path) -> Tokenizer:
    """A directory's tokenizer, with its chat template and whether it begins texts with the bos token in `settings`."""
    for path in directory.iterdir():
        if path.suffix in _SUFFIXES and path.is_symlink():
            inside(directory, path.name)
    tokenizer = load_tokenizer(directory)
    if templates := read_templates(directory):
        tokenizer.settings["chat_template"] = template_setting(templates)
    if not isinstance(tokenizer.settings.get("add_bos_token"), bool):
        tokenizer.settings["add_bos_token"] = _adds_bos(directory, tokenizer)
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
    # SentencePiece alone has no tokenizer.json; LlamaTokenizer reads its file in both versions.
    fast = (directory / VOCABULARY).exists()
    settings["tokenizer_class"] = "PreTrainedTokenizerFast" if fast else "LlamaTokenizer"
    settings.setdefault("clean_up_tokenization_spaces", False)  # whose default in transformers 4 rewrites texts
    longest = settings.get("model_max_length")
    settings["model_max_length"] = min(longest, context_length) if isinstance(longest, int) else context_length
    templates = named_templates(tokenizer.settings.get("chat_template"))
    if templates:
        settings["chat_template"] = template_setting(templates)
        write_templates(templates, directory)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (directory / SETTINGS).write_text(text + "\n", encoding="utf-8")
    if fast and settings.get("add_bos_token") is True and tokenizer.bos_id is not None:
        _begin_with_bos(directory / VOCABULARY, settings["bos_token"], tokenizer.bos_id)


def changes(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    """Settings with which `undo_changes` reads this very tokenizer back from the files that were written of it.

    "settings": those that the files say otherwise; "without": names of those that only they have; "post_processor": the
    tokenizer's own, where the file's puts the bos token first.
    """
    again, changed = read(directory), {}
    missing = object()
    settings = {key: v for key, v in tokenizer.settings.items() if again.settings.get(key, missing) != v}
    without = [key for key in again.settings if key not in tokenizer.settings]
    if again.fingerprint != tokenizer.fingerprint:
        with tempfile.TemporaryDirectory() as original:
            tokenizer.save(original)
            changed["post_processor"] = read_json(Path(original) / VOCABULARY).get("post_processor")
    return {**changed, "settings": settings, "without": without}


def undo_changes(directory: Path, changed: Values) -> Tokenizer:
    """The tokenizer of which a directory was written; see `changes`."""
    tokenizer = read(directory)
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
        tokenizer = Tokenizer(backend, tokenizer.settings)
    tokenizer.settings = settings
    return tokenizer


def _adds_bos(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether transformers puts the bos token before a text."""
    if tokenizer.bos_id is None:
        return False
    if not (directory / VOCABULARY).is_file():  # SentencePiece alone: as the classes of these files do by default
        return str(tokenizer.settings.get("tokenizer_class")).startswith(("Llama", "Gemma"))
    bos = tokenizer.id_to_token(tokenizer.bos_id)
    return any(first == bos for first in _first_tokens(read_json(inside(directory, VOCABULARY)).get("post_processor")))


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
