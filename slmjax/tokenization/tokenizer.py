"""Text to token ids and back: one class over Hugging Face `tokenizers` and SentencePiece, loading, saving, training."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tqdm import tqdm

from slmjax.errors import UserError, first_few, one_line
from slmjax.files import local_path
from slmjax.tokenization.backends import Backend, HuggingFaceBackend, SentencePieceBackend
from slmjax.tokenization.huggingface_directory import is_of_transformers, read_directory
from slmjax.tokenization.long_words import cut_long_words
from slmjax.untrusted import parse_json, read_text

END_OF_TEXT = "<|endoftext|>"
STOP_IDS = "stop_ids"  # in a run's settings: where its model ends what it says, as its base does

# Used where no tokenizer_config.json or special_tokens_map.json says which token plays the role; the first found wins.
_WELL_KNOWN = {
    "eos": (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<\uff5cend▁of▁sentence\uff5c>", "<|im_end|>"),
    "bos": (
        "<s>",
        "<|begin_of_text|>",
        "<bos>",
        "<|bos|>",
        "<\uff5cbegin▁of▁sentence\uff5c>",
        "<|startoftext|>",
        END_OF_TEXT,
    ),
    "pad": ("<pad>", "<|padding|>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<\uff5c▁pad▁\uff5c>"),
}

# Llama 3's pre-tokenizer (in turn GPT-4's with digits in groups of three): words keep one leading space or mark,
# newlines end a chunk. Every character falls into some alternative, so nothing is lost.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Encodes text to ids and back.

    Attributes:
        vocab_size: one more than the largest token id.
        bos_id, eos_id, pad_id: ids of the tokens that begin a document, end it, and pad, None where there is none.
        fingerprint: 16 hex digits; equal for equal vocabularies, rules and special tokens.
        settings: what `tokenizer_config.json` held (its chat template, for one), written back by `save`.
        begin_ids: what a prompt begins with, where a directory of transformers says more than the bos token.
    """

    def __init__(self, backend: Backend, settings: dict[str, Any] | None = None):
        self._backend = backend
        self.settings = dict(settings or {})
        self.begin_ids: tuple[int, ...] = ()
        self._splits_special = self.settings.get("split_special_tokens") is True  # a setting of transformers
        self.vocab_size = backend.vocab_size
        self.bos_id, self.eos_id, self.pad_id = (_find_role(backend, self.settings, r) for r in ("bos", "eos", "pad"))
        roles = f"{backend.digest()} {self.bos_id} {self.eos_id} {self.pad_id}"
        self.fingerprint = hashlib.sha256(roles.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, eos_id={self.eos_id}, fingerprint={self.fingerprint!r})"

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of `text`, with no token added.

        Special-token strings inside `text` are encoded as the text that they are; with `allow_special` (for templates
        that the program itself wrote, never for outside text) they become the special token.

        Raises:
            UserError: `text` holds a lone surrogate, which no UTF-8 stands for.
        """
        with _refusal():
            return self._backend.encode(_encodable(text), allow_special and not self._splits_special)

    def encode_batch(self, texts: Sequence[str], allow_special: bool = False) -> list[list[int]]:
        """`[encode(text, allow_special) for text in texts]`, on all cores."""
        special = allow_special and not self._splits_special
        with _refusal():
            return self._backend.encode_batch([_encodable(text) for text in texts], special)

    def encode_with_offsets(self, text: str, allow_special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode as `encode` does, and give for each token the characters [begin, end) of `text` that it stands for.

        Tokens that share a character (the bytes of an emoji) have the same place.

        Raises:
            UserError: a lone surrogate, or a SentencePiece model that rewrites the text.
        """
        with _refusal():
            return self._backend.encode_with_offsets(_encodable(text), allow_special and not self._splits_special)

    def special_tokens(self) -> dict[str, int]:
        """The special tokens, as text writes them, and their ids."""
        return self._backend.special_ids()

    def added_around(self) -> tuple[list[int], list[int]]:
        """The token ids that a `tokenizer.json` puts before and after a text, which `encode` leaves out."""
        with _refusal():
            return self._backend.added_around()

    def decode(self, ids: Sequence[int] | np.ndarray, keep_special: bool = False) -> str:
        """Text of `ids`. Special tokens and ids beyond the vocabulary stand for nothing, unless `keep_special`."""
        return self._backend.decode([int(id) for id in ids], keep_special)

    def token_to_id(self, token: str) -> int | None:
        """Id of the vocabulary entry `token`, None if there is none."""
        return self._backend.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The vocabulary entry `id`, in the vocabulary's own spelling (`Ġthe`, `▁the`)."""
        return self._backend.id_to_token(id)

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes that each token stands for; 0 for special tokens.

        Exact for byte-level BPE. SentencePiece's `▁` counts as the one byte of a space (which is also what the model
        makes of a `▁` in the text), so a text that it prefixes with a dummy space is counted one byte too long.
        """
        return self._backend.token_bytes()

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` or `tokenizer.model`, and `tokenizer_config.json`, for `load_tokenizer`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.save(directory)
        # Of whatever class it was read: its file now says all, and the settings nothing that is not in it.
        settings = {**self.settings, "tokenizer_class": "PreTrainedTokenizerFast"}
        settings.pop("added_tokens_decoder", None)
        for role, id in (("bos", self.bos_id), ("eos", self.eos_id), ("pad", self.pad_id)):
            settings[f"{role}_token"] = None if id is None else self._backend.id_to_token(id)
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def load_tokenizer(path: str | Path, *, as_saved: bool = False) -> Tokenizer:
    """Load a tokenizer from a file or from the directory that holds it.

    A directory is read as transformers reads it: by its class, with the tokens that any of its files adds, and without
    a bos or eos token where none is set. A file is taken as it is, and so is a directory without settings.

    Args:
        path: a `tokenizer.json`, a SentencePiece `.model`, or a directory with one of these or with a pair
            `*vocab.json` and `*merges.txt` (GPT-2). `tokenizer_config.json` and `special_tokens_map.json` beside it
            name the special tokens; a `chat_template.jinja` there is the chat template (settings["chat_template"]).
        as_saved: take the file of a directory that `Tokenizer.save` wrote as it is.

    Raises:
        UserError: nothing there, more than one candidate, or a file that does not parse.
    """
    path = local_path(path, "The tokenizer")
    if not path.exists():
        raise UserError(
            f"There is no tokenizer at {path}: give a tokenizer.json, a SentencePiece .model or a directory."
        )
    directory = path if path.is_dir() else path.parent
    file = _tokenizer_file(path) if path.is_dir() else path
    settings = _settings(directory)
    try:
        if path.is_dir() and not as_saved and is_of_transformers(directory):
            found = read_directory(directory)
            if found is not None:
                backend, roles = found
                return Tokenizer(backend, settings | roles)
        if file.name.endswith("vocab.json"):
            return Tokenizer(HuggingFaceBackend(_gpt2(file)), settings)
        if file.suffix == ".json":
            return Tokenizer(HuggingFaceBackend(tokenizers.Tokenizer.from_file(str(file))), settings)
        return Tokenizer(SentencePieceBackend(file.read_bytes()), settings)
    except UserError:
        raise
    except BaseException as error:  # the libraries raise plain Exception, RuntimeError, OSError ... for a damaged file
        if not _is_of_a_library(error):
            raise
        raise UserError(f"{file} is not a readable tokenizer ({one_line(error)}).") from error


def train_bpe(texts: Iterable[str], vocab_size: int, *, progress: bool = True) -> Tokenizer:
    """Train a byte-level BPE tokenizer; any string survives encode and decode unchanged.

    Args:
        texts: the documents; read once. Words of more than 1000 characters are cut first (`cut_long_words`).
        vocab_size: at least 257: the 256 bytes and `<|endoftext|>` (id 0), which begins and ends documents. Where the
            texts hold fewer pairs to merge, the vocabulary stays smaller, with a warning.
        progress: show bars on stderr.

    Source: byte-level BPE of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners", 2.2).
    """
    if vocab_size < 257:
        raise UserError(
            f"A byte-level vocabulary needs at least 257 tokens (256 bytes and one special), not {vocab_size}."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(cut_long_words(_watched(texts, vocab_size, progress)), trainer)
    trained = Tokenizer(HuggingFaceBackend(tokenizer))
    if trained.vocab_size < vocab_size:
        reached = f"the texts give a vocabulary of {trained.vocab_size} tokens, not {vocab_size}"
        warnings.warn(f"{reached}: there is nothing left to merge", stacklevel=2)
    return trained


def _watched(texts: Iterable[str], vocab_size: int, progress: bool) -> Iterator[str]:
    bar = tqdm(desc=f"tokenizer ({vocab_size})", unit="B", unit_scale=True, disable=not progress)
    with bar:
        for text in texts:
            yield _encodable(text)
            bar.update(len(text))
        bar.set_postfix_str("merging ...")


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    """A sentence for what the tokenizer's library raises, which is plain Exception, or its own panic beyond it."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not _is_of_a_library(error):
            raise
        raise UserError(f"The tokenizer cannot encode the text ({one_line(error)}): check its files.") from error


def _is_of_a_library(error: BaseException) -> bool:
    """Whether an error is one that a library raises: the panics of `tokenizers` are beyond `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start]
        raise UserError(
            f"The text after {near!r} contains a lone surrogate, which UTF-8 cannot encode: fix the input."
        ) from error
    return text


def _find_role(backend: Backend, settings: dict[str, Any], role: str) -> int | None:
    """Id of the "bos", "eos" or "pad" token: as the settings say, else as the model file says, else by its name."""
    key = f"{role}_token"
    if key in settings:
        token = settings[key]
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            return None
        if isinstance(token, str) and (id := backend.token_to_id(token)) is not None:
            return id
    if (declared := backend.declared(role)) is not None:
        return declared
    return next((id for name in _WELL_KNOWN[role] if (id := backend.token_to_id(name)) is not None), None)


def _tokenizer_file(directory: Path) -> Path:
    for pattern in ("tokenizer.json", "tokenizer.model", "*tokenizer.json", "*.model", "*vocab.json"):
        found = sorted(directory.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{directory} has several tokenizers ({', '.join(f.name for f in found)}): name one of them."
            )
        if found:
            return found[0]
    names = first_few(sorted(f.name for f in directory.iterdir()), 8) or "nothing"
    raise UserError(
        f"{directory} has no tokenizer.json, SentencePiece .model or *vocab.json with *merges.txt, only {names}."
    )


def _gpt2(vocabulary: Path) -> tokenizers.Tokenizer:
    merges = vocabulary.with_name(vocabulary.name.removesuffix("vocab.json") + "merges.txt")
    if not merges.is_file():
        raise UserError(f"{vocabulary} needs its merges beside it: there is no {merges.name}.")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the latter is the stronger word
        file = directory / name
        if not file.is_file():
            continue
        content = parse_json(read_text(file), file)
        if isinstance(content, dict):
            settings |= content
    template = directory / "chat_template.jinja"
    if template.is_file():  # it outranks the one inside tokenizer_config.json, as in transformers
        try:
            settings["chat_template"] = template.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"{template} is not UTF-8 text ({one_line(error)}).") from error
    return settings
