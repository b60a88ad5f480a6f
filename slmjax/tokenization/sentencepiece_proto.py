"""A SentencePiece model file, read and written: the protocol buffer's fields that a tokenizer is made of.

Source: sentencepiece_model.proto (field numbers) and the protocol buffers' wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from slmjax.errors import UserError

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_DAMAGED = "The SentencePiece model is damaged"


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces with their scores and types, in the order of their ids, and how text is prepared for them."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    algorithm: int = BPE
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    roles: dict[str, str] = field(default_factory=dict)  # "bos", "eos", "pad", "unk" -> piece
    ids: dict[str, int] = field(default_factory=dict)  # the same -> id, -1: none; absent: the format's default
    byte_fallback: bool = False
    escape_whitespaces: bool = True

    def role_id(self, role: str) -> int:
        """Id of "unk", "bos", "eos" or "pad", -1 where the model has none."""
        return self.ids.get(role, _DEFAULT_IDS[role])

    def to_bytes(self) -> bytes:
        """Serialize the model as the bytes of its file."""
        out = bytearray()
        for piece, score, kind in zip(self.pieces, self.scores, self.types, strict=True):
            raw = piece.encode()
            body = b"\x0a" + _varint(len(raw)) + raw + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
            out += b"\x0a" + _varint(len(body)) + body
        fallback = self.byte_fallback or BYTE in self.types
        trainer = _number(3, self.algorithm) + _number(4, len(self.pieces)) + _number(35, int(fallback))
        for number, role in _ROLES.items():
            trainer += _bytes(number, self.roles[role].encode()) if role in self.roles else b""
        for number, role in _ROLE_IDS.items():
            trainer += _number(number, self.ids[role] % (1 << 64)) if role in self.ids else b""
        normalizer = _bytes(2, self.charsmap) if self.charsmap else b""
        normalizer += _number(3, int(self.add_dummy_prefix)) + _number(4, int(self.remove_extra_whitespaces))
        normalizer += b"" if self.escape_whitespaces else _number(5, 0)
        return bytes(out) + _bytes(2, trainer) + _bytes(3, normalizer)


_ROLES = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}
_ROLE_IDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
_DEFAULT_IDS = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """The model in a file's bytes; UserError where they are none."""
    pieces, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            raw, score = piece.get(1, b""), piece.get(2, b"\0\0\0\0")
            if not isinstance(raw, bytes) or not isinstance(score, bytes):
                raise UserError(_DAMAGED + ".")
            pieces.append(raw.decode("utf-8", "replace"))
            scores.append(struct.unpack("<f", score)[0])
            types.append(int(piece.get(3, NORMAL)))
        elif number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(_fields(value))
    charsmap = normalizer.get(2, b"")
    named = {role: trainer[number] for number, role in _ROLES.items() if number in trainer}
    return SentencePieceModel(
        pieces,
        scores,
        types,
        int(trainer.get(3, UNIGRAM)),
        bool(normalizer.get(3, True)),
        bool(normalizer.get(4, True)),
        charsmap if isinstance(charsmap, bytes) else b"",
        {role: piece.decode("utf-8", "replace") for role, piece in named.items() if isinstance(piece, bytes)},
        {role: _signed(trainer[number]) for number, role in _ROLE_IDS.items() if isinstance(trainer.get(number), int)},
        bool(trainer.get(35, False)),
        bool(normalizer.get(5, True)),
    )


def _signed(value: int | bytes) -> int:
    """A protocol buffer's int32: negative numbers are written as the 64 bits of their complement."""
    number = int(value)
    return number - (1 << 64) if number >> 63 else number


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field: whole numbers of varints, bytes of everything else."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _read_varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise UserError(f"{_DAMAGED}: a field has wire type {wire}.")
        if size > len(data) - at:
            raise UserError(f"{_DAMAGED}: it ends inside a field.")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise UserError(f"{_DAMAGED}: it ends inside a number.")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
