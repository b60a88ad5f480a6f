"""Records are the same in JSON Lines, JSON arrays, CSV, Parquet and Arrow; what is broken is told with its place."""

import csv
import io
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.config import SourceConfig
from slmjax.data.reading.fields import ABSENT, find_field
from slmjax.data.sources import read_documents, read_records
from slmjax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
ipc, parquet = pytest.importorskip("pyarrow.ipc"), pytest.importorskip("pyarrow.parquet")

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\ufeff"), min_size=1, max_size=30)
RECORDS = st.lists(st.fixed_dictionaries({"id": TEXT, "text": TEXT}), min_size=1, max_size=8)


def _csv(records, delimiter) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue().encode()


def _arrow(records, begin) -> bytes:
    table = pyarrow.Table.from_pylist(records)
    sink = pyarrow.BufferOutputStream()
    with begin(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue().to_pybytes()


def _parquet(records) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(records), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "jsonl": lambda r: "\n".join(map(json.dumps, r)).encode(),
    "ndjson": lambda r: "".join(json.dumps(x, ensure_ascii=False) + "\r\n\n" for x in r).encode(),
    "lines.json": lambda r: "\n".join(map(json.dumps, r)).encode(),
    "array.json": lambda r: b"\xef\xbb\xbf" + json.dumps(r, indent=1, ensure_ascii=False).encode(),
    "line.json": lambda r: json.dumps(r).encode(),
    "two.json": lambda r: (json.dumps(r[:1]) + "\n" + json.dumps(r[1:])).encode(),
    "data.json": lambda r: json.dumps({"version": 1, "data": r}, indent=1).encode(),
    "dataline.json": lambda r: json.dumps({"version": 1, "data": r}).encode(),
    "spread.json": lambda r: "\n".join(json.dumps(x, indent=1) for x in r).encode(),
    "array.jsonl": lambda r: json.dumps(r, indent=1).encode(),
    "line.jsonl": lambda r: json.dumps(r).encode(),
    "csv": lambda r: _csv(r, ","),
    "semicolons.csv": lambda r: b"\xef\xbb\xbf" + _csv(r, ";"),
    "tsv": lambda r: _csv(r, "\t"),
    "parquet": _parquet,
    "stream.arrow": lambda r: _arrow(r, ipc.new_stream),
    "file.arrow": lambda r: _arrow(r, ipc.new_file),
}


@given(RECORDS)
@settings(deadline=None, max_examples=25)
def test_every_kind_of_file_gives_the_same_records(tmp_path_factory, records):
    directory = tmp_path_factory.mktemp("kinds")
    for name, written in WRITERS.items():
        path = directory / f"a.{name}"
        path.write_bytes(written(records))
        found = list(read_records(SourceConfig(str(path))))
        assert [record for _, record in found] == records, name
        assert len({where for where, _ in found}) == len(records)
        assert all(where.startswith(f"{path} ") for where, _ in found)
        texts = [record["text"] for record in records if record["text"].strip()]
        if texts:
            assert list(read_documents(SourceConfig(str(path)))) == texts, name


@given(RECORDS, st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_an_array_is_read_alike_wherever_its_blocks_end(tmp_path_factory, records, size):
    content = json.dumps([*records, [1.5e3, -20, True, None]], indent=2, ensure_ascii=False).encode()
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        parts = [content[i : i + size] for i in range(0, len(content), size)]
        patch.setattr("slmjax.data.reading.json_records.blocks", lambda path, consumed=None: (p for p in parts))
        found = [record for _, record in read_records(SourceConfig(str(path)))]
    assert found == [*records, [1.5e3, -20, True, None]]


@given(RECORDS, st.data())
@settings(deadline=None, max_examples=30)
def test_a_cut_array_or_stream_is_never_whole(tmp_path_factory, records, data):
    directory = tmp_path_factory.mktemp("cut")
    for name in ("array.json", "data.json", "parquet", "stream.arrow", "file.arrow"):
        content = WRITERS[name](records)
        path = directory / f"a.{name}"
        path.write_bytes(content[: data.draw(st.integers(4, len(content) - 1))])
        with pytest.raises(UserError) as caught:
            list(read_records(SourceConfig(str(path))))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_stream_of_arrow_cut_at_any_place_is_not_whole(tmp_path):
    content = WRITERS["stream.arrow"]([{"id": "1", "text": "a"}] * 7)
    path = tmp_path / "a.arrow"
    for size in range(0, len(content), 4):  # messages end at multiples of 8, and zeros fill them up
        path.write_bytes(content[:size])
        with pytest.raises(UserError):
            list(read_records(SourceConfig(str(path))))


BAD = {
    "comma.json": (b'[{"text": "a"} {"text": "b"}]', r"not a whole JSON array: line 1, after record 1, has '\{'"),
    "open.json": (b'[{"text": "a"},\n', "record 2 is not valid JSON"),
    "unclosed.json": (b'[{"text": "a"}\n', "line 2, after record 1, has the end of the file"),
    "word.json": (b'[\n{"text": "a"},\n{"text": oops}\n]', "record 2 is not valid JSON .* at line 3"),
    "latin1.json": (b'[{"text": "caf\xe9"}]', "latin1.json is not UTF-8 at byte 14"),
    "short.csv": (b"id,text\n1,a\n2\n", "line 3 has 1 fields, and the first row names 2"),
    "long.csv": (b"id,text\n1,a,b\n", "line 2 has 3 fields"),
    "quote.csv": (b'id,text\n1,"a\nb\n', "line 2 does not begin a row"),
    "latin1.csv": (b"id,text\n1,caf\xe9\n", "line 2 is not UTF-8 at byte 5 of the line"),
    "twice.csv": (b"text,text\n1,a\n", "names the column 'text' twice"),
    "other.csv": (b"id,body\n1,a\n", "has no field 'text': .* one of id, body"),
    "empty.arrow": (b"", "empty.arrow is not a readable Arrow file"),
    "junk.arrow": (b"junk" * 20, "damaged or incomplete"),
}


@pytest.mark.parametrize("name", BAD)
def test_damage_gets_one_sentence_with_its_place(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(SourceConfig(str(tmp_path / name))))
    assert "\n" not in str(caught.value)


def test_long_documents_of_many_lines_stay_whole_in_csv(tmp_path):
    text = 'a "quoted" word, and\r\n' * 20_000
    (tmp_path / "a.csv").write_bytes(_csv([{"id": "1", "text": text}, {"id": "2", "text": "b"}], ","))
    assert list(read_documents(SourceConfig(str(tmp_path / "a.csv")))) == [text, "b"]


def test_nested_fields_are_found_by_their_path_in_every_kind_of_file(tmp_path):
    records = [{"meta": {"text": "a", "n": {"text": "x"}}}, {"meta": {"text": "b", "n": {"text": "y"}}}]
    for name in ("jsonl", "array.json", "parquet", "stream.arrow", "file.arrow"):
        path = tmp_path / f"a.{name}"
        path.write_bytes(WRITERS[name](records))
        for field, expected in (("meta.text", ["a", "b"]), ("meta.n.text", ["x", "y"])):
            assert list(read_documents(SourceConfig(str(path), text_field=field))) == expected, name
        with pytest.raises(UserError, match=r"no field 'meta\.body'"):
            list(read_documents(SourceConfig(str(path), text_field="meta.body")))
    for name in ("jsonl", "parquet", "stream.arrow"):
        path = tmp_path / f"dotted.{name}"
        path.write_bytes(WRITERS[name]([{"meta.text": "d", "list": [{"text": "e"}, {"text": "f"}], "more": 1}]))
        assert list(read_documents(SourceConfig(str(path), text_field="meta.text"))) == ["d"], name
        assert list(read_documents(SourceConfig(str(path), text_field="list.1.text"))) == ["f"], name
    rows = [{"id": "1", "text": json.dumps({"body": "c"})}]
    for name in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"json_as_text.{name}"
        path.write_bytes(WRITERS[name](rows))
        assert list(read_documents(SourceConfig(str(path), text_field="text.body"))) == ["c"], name


VALUES = st.recursive(
    TEXT | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("ab"), inner) | st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
@settings(deadline=None, max_examples=40)
def test_a_field_is_found_by_the_path_that_leads_to_it(value):
    def walk(value, path):
        yield value, path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in items:
            yield from walk(item, [*path, str(name)])

    record = {"r": value, "dotted.name": "d"}
    for item, path in walk(value, ["r"]):
        assert find_field(record, ".".join(path)) == item
    assert find_field(record, "dotted.name") == "d"
    assert find_field(record, "r.absent") in (ABSENT, None)


def test_texts_of_parquet_may_be_bytes_and_null(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [b"a", None, "é".encode()]}), path)
    assert list(read_documents(SourceConfig(str(path)))) == ["a", "é"]


def test_values_of_arrow_may_be_stored_once(tmp_path):
    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0, 1, 0] * 50, pyarrow.int32()), pyarrow.array(["a", "b"])
    )
    table = pyarrow.table({"text": column})
    with ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert list(read_documents(SourceConfig(str(tmp_path / "a.arrow")))) == ["a", "b", "a"] * 50


def test_a_long_value_that_parquet_stores_once_is_not_held_for_many_rows(tmp_path):
    value = "long " * 400_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000, pyarrow.int32()), pyarrow.array([value]))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    pool, before = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool()), pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        assert len(list(itertools.islice(read_documents(SourceConfig(str(path))), 200))) == 200
    finally:
        pyarrow.set_memory_pool(before)
    assert pool.max_memory() < 1 << 30  # 1024 rows have 2 GB
