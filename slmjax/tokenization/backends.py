"""The two libraries behind a tokenizer, brought to one shape.

Both encode without ever emitting a special token: raw text that happens to contain `<|endoftext|>` or `</s>` is text.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from slmjax.errors import UserError, one_line
from slmjax.untrusted import MAX_SIZE

SPACE = "▁"  # how SentencePiece writes a space inside a piece
Offsets = list[tuple[int, int]]  # of each token: where in the text it begins and ends, in characters
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Backend(Protocol):
    """The functions that `Tokenizer` needs from a library."""

    vocab_size: int

    def encode(self, text: str, allow_special: bool) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str], allow_special: bool) -> list[list[int]]: ...
    def encode_with_offsets(self, text: str, allow_special: bool) -> tuple[list[int], Offsets]: ...
    def decode(self, ids: Sequence[int], keep_special: bool) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...
    def special_ids(self) -> dict[str, int]: ...
    def added_around(self) -> tuple[list[int], list[int]]: ...
    def declared(self, role: str) -> int | None: ...
    def token_bytes(self) -> np.ndarray: ...
    def digest(self) -> str: ...
    def save(self, directory: Path) -> None: ...


class HuggingFaceBackend:
    """A `tokenizers.Tokenizer`. Truncation, padding and templates of the file are switched off."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._plain = tokenizer
        self._plain.encode_special_tokens = True  # the library's name for "treat special tokens as ordinary text"
        self._special: tokenizers.Tokenizer | None = None
        self._tracking: dict[bool, tokenizers.Tokenizer] = {}
        self._vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._tokens = {id: token for token, id in self._vocabulary.items()}
        self.vocab_size = max(self._tokens, default=-1) + 1  # ids may have gaps: the count of entries is not a bound
        if self.vocab_size > MAX_SIZE:  # the library counts up to it when it writes
            raise UserError(
                f"The tokenizer gives {self._tokens[self.vocab_size - 1][:60]!r} the id {self.vocab_size - 1:,}, "
                f"beyond any vocabulary ({MAX_SIZE:,} at most): fetch its file again."
            )

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Token ids of `text`; `allow_special` lets strings such as `<|endoftext|>` become their special token."""
        with _told():
            return self._encoder(allow_special).encode(text, add_special_tokens=False).ids

    def _encoder(self, allow_special: bool) -> tokenizers.Tokenizer:
        if not allow_special:
            return self._plain
        if self._special is None:
            self._special = _read_again(json.loads(self._plain.to_str()))
            self._special.encode_special_tokens = False
        return self._special

    def encode_batch(self, texts: Sequence[str], allow_special: bool) -> list[list[int]]:
        """Token ids of each text, computed on the library's threads; offsets are not tracked, which is faster."""
        with _told():
            encodings = self._encoder(allow_special).encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str, allow_special: bool) -> tuple[list[int], Offsets]:
        """Token ids of `text` and the characters that each stands for; tokens that share a character overlap."""
        if allow_special not in self._tracking:
            # A post-processor adds nothing here, and that of GPT-2 takes the spaces out of the offsets.
            description = json.loads(self._plain.to_str()) | {"post_processor": None}
            encoder = _read_again(description)
            encoder.encode_special_tokens = not allow_special
            self._tracking[allow_special] = encoder
        with _told():
            encoding = self._tracking[allow_special].encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], keep_special: bool) -> str:
        """Text of `ids`; ids beyond the vocabulary (a padded model's) stand for nothing."""
        return self._plain.decode(ids, skip_special_tokens=not keep_special)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token, None if the vocabulary lacks it."""
        return self._vocabulary.get(token)

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary writes it."""
        return self._tokens.get(id)

    def special_ids(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return {token.content: id for id, token in self._plain.get_added_tokens_decoder().items() if token.special}

    def added_around(self) -> tuple[list[int], list[int]]:
        """Ids that the file's post-processor puts before and after a text."""
        processor = self._plain.post_processor
        if processor is None or not processor.num_special_tokens_to_add(False):
            return [], []
        encoding = self._plain.encode("a")
        text = [at for at, added in enumerate(encoding.special_tokens_mask) if not added]
        first, last = (text[0], text[-1] + 1) if text else (len(encoding.ids), len(encoding.ids))
        return encoding.ids[:first], encoding.ids[last:]

    def declared(self, role: str) -> int | None:
        """`tokenizer.json` does not say which token ends a text."""
        return None

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes that each token stands for."""
        description = json.loads(self._plain.to_str())
        byte_level = '"ByteLevel"' in json.dumps([description.get("decoder"), description.get("pre_tokenizer")])
        byte_fallback = bool(description["model"].get("byte_fallback"))
        added = self._plain.get_added_tokens_decoder()
        sizes = np.zeros(self.vocab_size, np.int32)
        for id, token in self._tokens.items():
            if id in added:
                sizes[id] = 0 if added[id].special else len(token.encode())
            elif byte_level:
                sizes[id] = len(token)  # GPT-2's alphabet writes one character a byte
            elif byte_fallback and _BYTE_PIECE.fullmatch(token):
                sizes[id] = 1
            else:
                sizes[id] = len(token.replace(SPACE, " ").removeprefix("##").encode())
        return sizes

    def digest(self) -> str:
        """sha256 of the file's meaning: its JSON with sorted keys, absent and null entries alike."""
        description = _without_nulls(json.loads(self._plain.to_str()))
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        (directory / "tokenizer.json").write_text(self._plain.to_str(pretty=True), encoding="utf-8")


def _read_again(description: dict[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer of its description; UserError where the library does not read what it wrote."""
    with _told():
        return tokenizers.Tokenizer.from_str(json.dumps(description))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """UserError for what the library raises on a file that it has read: plain Exception, of vocabularies with holes."""
    try:
        yield
    except Exception as error:
        raise UserError(f"The tokenizer's file cannot be used ({one_line(error)}): fetch it again.") from error


class SentencePieceBackend:
    """A `sentencepiece.SentencePieceProcessor`, made from the bytes of its `.model` file."""

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        every = list(range(self.vocab_size))
        self._processor.id_to_piece(every)  # raises where a piece is not UTF-8
        controls, unknown = self._processor.is_control(every), self._processor.is_unknown(every)
        self._special = {id for id in every if controls[id] or unknown[id]}
        self._threads = os.cpu_count() or 1

    def __reduce__(self) -> tuple[type["SentencePieceBackend"], tuple[bytes]]:
        return type(self), (self._model,)

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Token ids of `text`; the library never reads control pieces out of text, so they are split off by hand."""
        special = self.special_ids() if allow_special else {}
        ids: list[int] = []
        for part in _parts(text, special):
            ids.extend([special[part]] if part in special else self._processor.encode(part))
        return ids

    def encode_batch(self, texts: Sequence[str], allow_special: bool) -> list[list[int]]:
        """Token ids of each text, on as many threads as the machine has cores."""
        special = self.special_ids() if allow_special else {}
        parts = [_parts(text, special) for text in texts]
        found = iter(
            self._processor.encode([p for row in parts for p in row if p not in special], num_threads=self._threads)
        )
        return [[id for part in row for id in ([special[part]] if part in special else next(found))] for row in parts]

    def encode_with_offsets(self, text: str, allow_special: bool) -> tuple[list[int], Offsets]:
        """Token ids of `text` and the characters that each stands for; a prefixed space stands for none.

        Computed from the pieces, since the library's own offsets are of bytes or of characters by its version.

        Raises:
            UserError: the model rewrites the text (Unicode normalization, spaces removed).
        """
        special = self.special_ids() if allow_special else {}
        ids: list[int] = []
        offsets: Offsets = []
        begin = 0
        for part in _parts(text, special):
            if part in special:
                ids.append(special[part])
                offsets.append((begin, begin + len(part)))
            else:
                ids.extend(self._processor.encode(part))
                spans = _piece_spans(self._processor.encode(part, out_type=str), part)
                offsets.extend((begin + start, begin + end) for start, end in spans)
            begin += len(part)
        return ids, offsets

    def decode(self, ids: Sequence[int], keep_special: bool) -> str:
        """Text of `ids`; control pieces, and what is unknown, are written only with `keep_special`."""
        ids = [id for id in ids if 0 <= id < self.vocab_size]
        if not keep_special:
            return self._processor.decode([id for id in ids if id not in self._special])
        text = ""
        run: list[int] = []
        for id in ids:
            if id in self._special:
                text += self._processor.decode(run) + self._processor.id_to_piece(id)
                run = []
            else:
                run.append(id)
        return text + self._processor.decode(run)

    def token_to_id(self, token: str) -> int | None:
        """Id of a piece, None if the vocabulary lacks it."""
        id = self._processor.piece_to_id(token)
        return id if self._processor.id_to_piece(id) == token else None

    def id_to_token(self, id: int) -> str | None:
        """The piece as the vocabulary writes it."""
        return self._processor.id_to_piece(id) if 0 <= id < self.vocab_size else None

    def special_ids(self) -> dict[str, int]:
        """Control pieces and their ids, and the one of what is unknown."""
        return {self._processor.id_to_piece(id): id for id in sorted(self._special)}

    def added_around(self) -> tuple[list[int], list[int]]:
        """Nothing: a model does not say what is put around a text."""
        return [], []

    def declared(self, role: str) -> int | None:
        """The id that the model itself gives to `role` ("bos", "eos" or "pad"), if any."""
        id = getattr(self._processor, f"{role}_id")()
        return id if id >= 0 else None

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes that each piece stands for; 0 for control and unknown pieces."""
        processor, sizes = self._processor, np.zeros(self.vocab_size, np.int32)
        for id in range(self.vocab_size):
            if processor.is_byte(id):
                sizes[id] = 1
            elif not (processor.is_control(id) or processor.is_unknown(id) or processor.is_unused(id)):
                sizes[id] = len(processor.id_to_piece(id).replace(SPACE, " ").encode())
        return sizes

    def digest(self) -> str:
        """sha256 of the model file."""
        return hashlib.sha256(self._model).hexdigest()

    def save(self, directory: Path) -> None:
        """Write `tokenizer.model`."""
        (directory / "tokenizer.model").write_bytes(self._model)


def _parts(text: str, special: dict[str, int]) -> list[str]:
    """`text` cut before and after each of its special tokens."""
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
    return [part for part in parts if part]


def _piece_spans(pieces: list[str], text: str) -> Offsets:
    """The characters of `text` that each piece stands for; the bytes of one character all stand for it."""
    character = [number for number, c in enumerate(text) for _ in c.encode()]  # of each byte
    sizes = [1 if _BYTE_PIECE.fullmatch(piece) else len(piece.replace(SPACE, " ").encode()) for piece in pieces]
    prefix = sum(sizes) - len(character)  # 1 where the model puts a space before the text
    if prefix not in (0, 1):
        raise UserError(
            "This SentencePiece model rewrites the text, so its tokens cannot be mapped to character offsets."
        )
    spans, end = [], -prefix
    for size in sizes:
        begin, end = max(end, 0), end + size
        spans.append((character[begin], character[end - 1] + 1) if end > begin else (begin, begin))
    return spans


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
