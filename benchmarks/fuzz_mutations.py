"""Damage to files: bytes of any of them, and the structure of those whose structure is known."""

import copy
import gzip
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 7, 300, 2**31, 2**63, 10**30, 0.0, -0.5, 1e-9, 1e308, math.nan]
VALUES += [
    math.inf,
    -math.inf,
    "",
    " ",
    "a",
    "\0",
    "\ud800",
    "\u2028",
    "../../x",
    "/etc/passwd",
    "x" * 5000,
    "{{",
    "{%",
]
VALUES += ["float16", "default", "linear", "(a+)+$", "*", "None", [], [[]], {}, [0], [None], [-1], ["a"], {"a": 1}]
VALUES += [[1] * 50, {"type": "x"}, {"content": None}, {"": {}}, [[["a"]]]]
WORDS = [b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"', b",", b":", b"\\u0000", b"\\ud800", b"\xff\xfe"]
WORDS += [
    b"F32",
    b"BF16",
    b"F8_E4M3",
    b"I64",
    b"shape",
    b"dtype",
    b"\0" * 8,
    b"\xff" * 8,
    b"\n",
    b"\r",
    b"\xef\xbb\xbf",
]
JINJA = ["{{ messages[9].content }}", "{% for m in messages %}", "{% endfor %}", "{{ 9**9**9 }}", "{{ 'a' * 10**9 }}"]
JINJA += [
    "{% set x = messages %}",
    "{{ x.__class__ }}",
    "{{ raise_exception('no') }}",
    "{% include 'a' %}",
    "{{ x|e }}",
]
JINJA += ["{% import 'os' as os %}", "{{ range(10**9)|list }}", "{% generation %}", "{% endgeneration %}", "{# ", " #}"]
JINJA += [
    "{% if true %}",
    "{% else %}",
    "{% endif %}",
    "{{ namespace(a=1).a }}",
    "{{ strftime_now('%Y') }}",
    "{{ (" * 99,
]
JINJA += [
    "{{ messages|tojson(indent=9) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ bos_token }}",
    "%}",
    "}}",
]
JINJA += [
    "{{ tools }}",
    "{{ messages|map(attribute='content')|join }}",
    "{{ 1/0 }}",
    "{{ '%s' % 1 }}",
    "{{ '{}'.format }}",
]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few places overwritten, inserted, removed or repeated; now and then the end is missing, or it comes twice."""
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(raw) + 1) if rng.random() < 0.7 else min(len(raw), rng.randrange(64))
        kind = rng.randrange(6)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
            continue
        new = (
            bytes([rng.randrange(256)]),
            struct.pack("<Q", rng.choice(NUMBERS)),
            struct.pack("<I", rng.choice(NUMBERS) % 2**32),
            rng.choice(WORDS),
            bytes(raw[at : at + rng.randint(1, 64)]),
        )[kind - 1]
        raw[at : at + rng.choice([0, len(new), len(new), rng.randint(0, 64)])] = new
    end = rng.random()
    if end < 0.08:
        return bytes(raw[: rng.randrange(len(raw) + 1)])
    return bytes(raw + raw) if end < 0.1 else bytes(raw)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Values replaced by others of any type, keys removed, renamed, repeated or exchanged; else its bytes."""
    if rng.random() < 0.25:
        return damage_bytes(content, rng)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return damage_bytes(content, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        values = damage_value(values, rng)
    text = json.dumps(values, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.03:  # what no value makes: depth, a number of many digits, a name that comes twice
        raw = rng.choice(["[" * 9999, "1" * 9999, "1e9999", '{"a":1,"a":2}', "[" * 99 + "]" * 99])
        text = text.replace("null" if "null" in text else "1", raw, 1)
    return text.encode("utf-8", "surrogatepass")


def damage_value(values: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed."""
    places = [(owner, key) for owner, key in _places(values)]
    if not places:
        return copy.deepcopy(rng.choice(VALUES))
    owner, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 4:
        owner[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 4:
        del owner[key]
    elif kind == 5:
        other, name = rng.choice(places)
        owner[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else other[name : name + 1]))
    elif isinstance(owner, list):
        owner[key:key] = [owner[key]] * rng.choice([1, 2, 40])
    elif kind == 6 and isinstance(owner[key], int | float):
        owner[key] = rng.choice([-1, 2, 0.5, 1.5, 1000]) * owner[key] + rng.choice([0, 1, -1])
    else:
        owner[rng.choice(["", "a", key + "s", key.upper(), "type", "__class__"])] = owner.pop(key)
    return values


def _places(values: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [values]
    while waiting:
        owner = waiting.pop()
        items = owner.items() if isinstance(owner, dict) else enumerate(owner) if isinstance(owner, list) else ()
        for key, value in items:
            found.append((owner, key))
            waiting.append(value)
    return found


def damage_lines(content: bytes, rng: random.Random) -> bytes:
    """JSON Lines of which one is changed, or their bytes."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = damage_json(lines[at], rng)
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines)), rng.choice([b"", b" ", b"\0", b"null", b"[]", b"\xef\xbb\xbf", b"{"]))
    return rng.choice([b"\n", b"\n", b"\n", b"\r\n", b"\r"]).join(lines)


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Its header changed as JSON, with the length that it then has (or nearly); else its bytes."""
    if rng.random() < 0.4:
        return damage_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = damage_json(content[8 : 8 + length], rng)
    claimed = len(header) + rng.choice([0] * 9 + [1])
    return claimed.to_bytes(8, "little") + header + content[8 + length :]


def damage_template(content: bytes, rng: random.Random) -> bytes:
    """Pieces of Jinja put in, taken out, or exchanged; else its bytes."""
    if rng.random() < 0.2:
        return damage_bytes(content, rng)
    text = content.decode("utf-8", "replace")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(text) + 1)
        if rng.random() < 0.5:
            at = max(0, text.find(rng.choice(["{%", "{{", "%}", "}}"]), at))
        text = text[:at] + rng.choice(JINJA) + text[at + rng.choice([0, 0, 2, rng.randint(0, 40)]) :]
    return text.encode("utf-8", "replace")


def damage_gzip(content: bytes, rng: random.Random) -> bytes:
    """Damaged when compressed, or compressed when damaged."""
    if rng.random() < 0.5:
        return damage_bytes(content, rng)
    inner = damage_lines(gzip.decompress(content), rng)
    halves = inner[: len(inner) // 2], inner[len(inner) // 2 :]
    return b"".join(gzip.compress(half, 1, mtime=0) for half in halves)


def damage_zst(content: bytes, rng: random.Random) -> bytes:
    """Damaged when compressed; or compressed when damaged, in frames of any settings, with or without their sizes."""
    import zstandard

    if rng.random() < 0.5:
        return damage_bytes(content, rng)
    inner = damage_lines(zstandard.ZstdDecompressor().decompress(content), rng)
    cut = rng.randrange(len(inner) + 1)
    frames = []
    for part in (inner[:cut], inner[cut:]):
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1, window_log=rng.choice([10, 20, 27, 30]), write_content_size=rng.random() < 0.5
        )
        frames.append(zstandard.ZstdCompressor(compression_params=parameters).compress(part))
    skipped = struct.pack("<II", 0x184D2A50, rng.choice([0, 4, 2**31])) + b"skip"
    return rng.choice([b"", b"", skipped]).join(frames) + rng.choice([b"", b"", b"\0", skipped])


def damage_parquet(content: bytes, rng: random.Random) -> bytes:
    """Its table written anew with columns of other types, names or lengths; else its bytes, mostly of the footer."""
    import pyarrow
    from pyarrow import parquet

    if rng.random() < 0.6:
        if rng.random() < 0.5:
            length = int.from_bytes(content[-8:-4], "little")
            footer = damage_bytes(content[-8 - length : -8], rng)
            return content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
        return damage_bytes(content, rng)
    table = parquet.read_table(pyarrow.BufferReader(content), use_threads=False)
    rows = table.to_pylist()
    at, name = rng.randrange(len(rows)), rng.choice(table.column_names)
    value = damage_value({"a": rows[at][name]}, rng).get("a")
    for row in rows if rng.random() < 0.7 else rows[at : at + 1]:
        row[name] = value
    sink = pyarrow.BufferOutputStream()
    try:
        compression = rng.choice(["none", "snappy", "zstd", "gzip"])
        parquet.write_table(pyarrow.Table.from_pylist(rows), sink, compression=compression)
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return damage_bytes(content, rng)
    return sink.getvalue().to_pybytes()


def damage_sentencepiece(content: bytes, rng: random.Random) -> bytes:
    """Pieces, scores, types and settings changed; else its bytes."""
    from slmjax.tokenization.sentencepiece_proto import SentencePieceModel, parse_sentencepiece

    if rng.random() < 0.5:
        return damage_bytes(content, rng)
    model = parse_sentencepiece(content)
    fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(model.pieces))
        kind = rng.randrange(6)
        if kind == 0:
            model.pieces[at] = rng.choice(["", " ", "▁", "\0", "<s>", "<0x00>", "<0xZZ>", "x" * 999, model.pieces[0]])
        elif kind == 1:
            model.scores[at] = rng.choice([0.0, -1e38, 1e38, math.nan, math.inf, -math.inf])
        elif kind == 2:
            model.types[at] = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 99])
        elif kind == 3:
            fields["algorithm"] = rng.choice([0, 1, 2, 3, 4, 5])
        elif kind == 4:
            fields["charsmap"] = rng.choice([b"", b"\0", b"\x04\0\0\0abcd", b"\xff" * 64, struct.pack("<I", 2**31)])
        else:
            del model.pieces[at:], model.scores[at:], model.types[at:]
            break
    return SentencePieceModel(**fields).to_bytes()


def damage_gguf(content: bytes, rng: random.Random, parsed: dict[bytes, Any]) -> bytes:
    """Keys, values and tensors' descriptions changed and written anew; else its bytes, mostly of the header.

    parsed: what was parsed of sound files, by content.
    """
    if rng.random() < 0.5:
        header = len(content) // 2 if rng.random() < 0.3 else min(len(content), 4096)
        return damage_bytes(content[:header], rng) + content[header:]
    metadata, tensors, start = parsed[content]
    keys = [[key, value] for key, value in metadata.items()]
    infos = [list(info) for info in tensors]
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.6:
            at = rng.randrange(len(keys))
            _damage_key(keys, at, rng)
        elif infos:
            info = rng.choice(infos)
            kind = rng.randrange(5)
            if kind == 0:
                info[0] = rng.choice([info[0] + "s", "", infos[0][0], "output.weight", "rope_freqs.weight", "x" * 2000])
            elif kind == 1:
                info[1] = rng.choice([(), (0,), (1,), (2**63,), (2**32, 2**32), info[1][::-1], (*info[1], 1), (1,) * 9])
            elif kind == 2:
                info[2] = rng.choice([0, 1, 2, 3, 8, 12, 14, 24, 30, 39, 255])
            elif kind == 3:
                info[3] = rng.choice([0, 1, info[3] + 32, 2**63, infos[0][3]])
            else:
                infos.remove(info)
    out = b"GGUF" + struct.pack("<IQQ", rng.choice([3, 3, 3, 2]), len(infos), len(keys))
    for key, value in keys:
        out += _gguf_text(key) + _gguf_value(value)
    for name, shape, kind, offset in infos:
        out += _gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset % 2**64)
    return out + bytes(-len(out) % 32) + content[start:]


def _damage_key(keys: list[list[Any]], at: int, rng: random.Random) -> None:
    value = keys[at][1]
    kind = rng.randrange(6)
    if kind == 0:
        del keys[at]
    elif kind == 1:
        keys[at][0] = rng.choice([keys[0][0], "", "general.alignment", keys[at][0] + "s", "slmjax.stop_ids"])
    elif kind == 2 and isinstance(value, list) and value:
        place = rng.randrange(len(value))
        other = rng.choice(["", "a", " ", "a b", "a b c", "\0", "▁", "<|im_end|>", value[0], value[-1], "x" * 999])
        keys[at][1] = value[:place] + [other] * rng.choice([0, 1, 1, 1, 2]) + value[place + 1 :]
    elif kind == 2 and isinstance(value, np.ndarray) and value.size:
        changed = value.copy()
        with np.errstate(all="ignore"):
            changed[rng.randrange(len(value))] = rng.choice([0, 1, 2, 3, 6, 99])
        keys[at][1] = changed[: rng.choice([len(value), len(value), len(value) - 1, 0])]
    else:
        wild: list[Any] = [
            True,
            0,
            1,
            -1,
            2,
            3,
            2**31,
            2**32 - 1,
            0.0,
            -1.5,
            1e30,
            math.nan,
            math.inf,
            "",
            "a",
            "llama",
        ]
        wild += ["gpt2", "x" * 999, [], ["a"], ["a", "a"], np.zeros(0, np.int32), np.ones(3, np.float32), "{{ 1 }}"]
        wild += [np.full(2, -1, np.int64), np.full(2, 2**63, np.uint64), np.ones(1, bool), np.full(3, np.nan, "<f8")]
        keys[at][1] = rng.choice(wild)


def _gguf_text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _gguf_value(value: Any) -> bytes:
    types = ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8"]
    numbers = {np.dtype(name): i for i, name in enumerate(types) if name}
    if isinstance(value, str):
        return struct.pack("<I", 8) + _gguf_text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_gguf_text, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, numbers[value.dtype], len(value)) + value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    return struct.pack("<Iq", 11, value) if value < 0 else struct.pack("<IQ", 10, value)


BY_SUFFIX: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": damage_json,
    ".jsonl": damage_lines,
    ".safetensors": damage_safetensors,
    ".jinja": damage_template,
    ".gz": damage_gzip,
    ".zst": damage_zst,
    ".parquet": damage_parquet,
    ".model": damage_sentencepiece,
}
