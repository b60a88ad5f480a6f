"""Files of records and texts that fuzz.py damages: how sound ones are made, and what reads them."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_damage import Files

from slmjax.data.config import SourceConfig
from slmjax.data.conversations.records import Conversation, parse_record
from slmjax.data.sources import read_documents, read_records
from slmjax.errors import UserError

TEXT = "The old river, 3 stones and a lïght 🙂\n\n<|endoftext|> <s>  x"
MESSAGES = [{"role": "user", "content": "Hello <|im_end|>"}, {"role": "assistant", "content": "It is a river."}]
RECORDS: list[dict[str, Any]] = [
    {"text": "A river. " * 3, "meta": {"source": "x"}},
    {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "text": "a"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": None,
     "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": "1"}], "text": "a"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s", "text": "b"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "f"}'}]},
    {"prompt": "a", "completion": "b", "text": "c"},
    {"prompt": MESSAGES[:1], "completion": MESSAGES[1:], "text": "c"},
    {"instruction": "a", "input": "b", "output": "c", "history": [["a", "b"]], "text": "d"},
]  # fmt: skip


CSV = b'text,n\n"A river, old.",1\n"a ""b""\nc",2\nd,\n'


def lines(records: list[Any]) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode() + b"\n"


def jsonl_seeds(folder: Path) -> list[Files]:
    one_each = [{"a.jsonl": lines([record, record])} for record in RECORDS]
    return [*one_each, {"a.jsonl": lines(RECORDS)}, {"a.json": json.dumps(RECORDS).encode()}]


def compressed_seeds(folder: Path) -> list[Files]:
    import zstandard

    content = lines(RECORDS)
    squeezed, zipped = zstandard.ZstdCompressor().compress(content), gzip.compress(content, mtime=0)
    texts = {"a.txt.zst": zstandard.ZstdCompressor().compress(TEXT.encode()), "b.md": TEXT.encode()}
    tables = [{"a.csv": CSV}, {"a.tsv": CSV.replace(b",", b"\t")}, {"a.jsonl.xz": lzma.compress(content)}]
    return [{"a.jsonl.zst": squeezed}, {"a.jsonl.gz": zipped}, {"a.json.zst": squeezed}, texts, *tables]


def parquet_seeds(folder: Path) -> list[Files]:
    import pyarrow
    from pyarrow import parquet

    tables = ([{"text": "A river. " * 9, "n": i} for i in range(9)], [{"messages": MESSAGES, "text": "a"}] * 3)
    for number, rows in enumerate(tables):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{number}.parquet", compression="none")
    return [{"a.parquet": path.read_bytes()} for path in sorted(folder.iterdir())]


def read_data(folder: Path) -> None:
    """As a text, and as conversations; a refusal of the one does not spare the other."""
    source = SourceConfig(str(folder))
    refusals = [refusal for one in (texts, records) if (refusal := _refusal(one, source)) is not None]
    if len(refusals) == 2:
        raise refusals[0]


def texts(source: SourceConfig) -> None:
    for number, _ in enumerate(read_documents(source)):
        assert number < 10**5


def records(source: SourceConfig) -> None:
    for _, record in read_records(source):
        item = parse_record(record, {}, "s")
        if isinstance(item, Conversation):
            json.dumps(item.messages)


def _refusal(read: Callable[[SourceConfig], None], source: SourceConfig) -> UserError | None:
    try:
        read(source)
    except UserError as error:
        return error
    return None
