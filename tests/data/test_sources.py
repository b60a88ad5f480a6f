"""Every format gives the same documents, and damage is reported with its place."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.config import SourceConfig
from slmjax.data.conversations.records import parse_record
from slmjax.data.readers import cut_text
from slmjax.data.sources import read_documents, read_records, source_files
from slmjax.errors import UserError

TEXTS = ["The first text.\n\nWith two paragraphs.", "naïve café ☃ \U0001f600", "third " * 3000]


def _read(path, **values) -> list[str]:
    return list(read_documents(SourceConfig(str(path), **values)))


def _jsonl(texts) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


def _write(directory, kind):
    path = directory / f"data.{kind}"
    if kind == "jsonl":
        path.write_bytes(_jsonl(TEXTS))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(_jsonl(TEXTS)))
    elif kind == "jsonl.zst":
        path.write_bytes(pytest.importorskip("zstandard").compress(_jsonl(TEXTS)))
    elif kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").table({"text": [*TEXTS, None], "id": [1, 2, 3, 4]})
        parquet.write_table(table, path, row_group_size=2)
    else:
        module = pytest.importorskip("array_record.python.array_record_module")
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for text in TEXTS[:2]:
            writer.write(text.encode())
        writer.write(json.dumps({"text": TEXTS[2]}).encode())
        writer.close()
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "array_record"])
def test_every_format_gives_the_same_documents_and_tells_what_it_consumed(tmp_path, kind):
    path = _write(tmp_path, kind)
    consumed = []
    assert list(read_documents(SourceConfig(str(path)), consumed.append)) == TEXTS
    assert 0.9 * path.stat().st_size <= sum(consumed) <= path.stat().st_size


def test_a_text_file_is_one_document_and_a_directory_many(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    assert _read(tmp_path / "1.txt") == [TEXTS[1]]
    assert _read(tmp_path) == TEXTS
    assert _read(tmp_path / "*.txt") == TEXTS
    assert [path.name for path in source_files(SourceConfig(str(tmp_path)))] == ["0.txt", "1.txt", "2.txt"]


def test_a_byte_order_mark_is_no_text_and_line_ends_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert _read(tmp_path / "a.txt") == ["one\r\ntwo"]


def test_a_large_text_file_is_cut_into_bounded_documents_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("slmjax.data.readers._LARGE_TEXT", 10_000)
    monkeypatch.setattr("slmjax.data.readers._PIECE", 1000)
    text = "".join(f"Paragraph {i} of naïve words.\n\n" for i in range(2000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.txt", "b.txt.gz"):
        documents = _read(tmp_path / name)
        assert "".join(documents) == text
        assert max(map(len, documents)) <= 1000
        assert all(document.endswith("\n\n") for document in documents)


@given(st.text(alphabet="ab \n\r", max_size=300), st.integers(1, 50))
@settings(deadline=None)
def test_pieces_join_to_the_text_and_keep_the_limit(text, limit):
    pieces = list(cut_text(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)


@given(st.binary(max_size=6), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_characters_are_not_lost_where_a_block_ends(tmp_path_factory, junk, start):
    """Blocks of one byte: whatever is UTF-8 is read as Python reads it, whatever is not is refused."""
    content = b"x" * start + "é☃\U0001f600".encode() + junk
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmjax.data.readers.blocks", lambda path, consumed: (bytes([b]) for b in content))
        try:
            expected = content.decode()
        except UnicodeDecodeError as error:
            pattern = rf"not UTF-8.*byte {error.start}\b|is NUL"
            with pytest.raises(UserError, match=pattern):
                _read(path)
        else:
            if "\0" in expected:
                with pytest.raises(UserError, match=f"byte {content.index(0)} is NUL"):
                    _read(path)
            else:
                assert _read(path) == [expected]


BAD = {
    "latin1.txt": (b"caf\xe9 au lait", r"latin1.txt is not UTF-8 at byte 3"),
    "cut.txt": ("abc☃".encode()[:-1], "ends inside a character, at byte 3"),
    "binary.txt": (b"ab\0\0\1", r"binary.txt is not a text file: byte 2 is NUL"),
    "empty.txt": (b"", "empty.txt has no text"),
    "blank.txt": (b" \n ", "blank.txt has no text"),
    "bad.jsonl": (_jsonl(["a", "b"]) + b"{oops\n", "bad.jsonl line 3 is not a JSON record"),
    "deep.jsonl": (b"[" * 200_000 + b"\n", "deep.jsonl line 1 is not a JSON record"),
    "list.jsonl": (b"[1]\n", "list.jsonl line 1 is a JSON list, not an object"),
    "field.jsonl": (b'{"body": "x", "n": 1}\n', r"field.jsonl line 1 has no field 'text': .* one of body, n"),
    "number.jsonl": (b'{"text": 5}\n', "line 1: the field 'text' must be text, not int"),
    "latin1.jsonl": (
        _jsonl(["a"]) + b'{"text": "caf\xe9"}\n',
        "latin1.jsonl line 2 is not UTF-8 at byte 13 of the line",
    ),
    "surrogate.jsonl": (b'{"text": "ab\\ud800"}\n', "line 1: character 2 of 'text' is a lone surrogate"),
    "cut.jsonl.gz": (gzip.compress(_jsonl(TEXTS))[:-20], "cut.jsonl.gz is damaged or incomplete"),
    "no.jsonl.gz": (b"plain", "no.jsonl.gz is damaged or incomplete"),
    "cut.jsonl.zst": (b"\x28\xb5\x2f\xfd junk", "cut.jsonl.zst is damaged or incomplete"),
    "bad.parquet": (b"PAR1 junk PAR1", "bad.parquet is not a readable Parquet file"),
    "cut.array_record": (b"junk" * 100, "cut.array_record has no records"),
    "data.xyz": (b"a,b", "The name of .*data.xyz does not tell its format"),
}


@pytest.mark.parametrize("name", BAD)
def test_damage_gets_one_sentence_with_its_place(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        _read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_column_names_the_present_ones(tmp_path):
    with pytest.raises(UserError, match=r"no field 'body': .* one of text, id"):
        _read(_write(tmp_path, "parquet"), text_field="body")


def test_missing_places_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no data at"):
        _read(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="has no files"):
        _read(tmp_path / "*.txt")
    (tmp_path / "a.xyz").write_text("a")
    with pytest.raises(UserError, match=r"has no file of a known format, only a.xyz"):
        _read(tmp_path)
    assert _read(tmp_path / "a.xyz", format="text") == ["a"]


def test_a_tfds_data_set_is_read_without_tensorflow(tmp_path, monkeypatch):
    import sys

    tfds = pytest.importorskip("tensorflow_datasets")
    package = tmp_path / "tiny_builders"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tiny_text.py").write_text(
        "import tensorflow_datasets as tfds\n\n\n"
        "class TinyText(tfds.core.GeneratorBasedBuilder):\n"
        "    VERSION = tfds.core.Version('1.0.0')\n\n"
        "    def _info(self):\n"
        "        text = tfds.features.Text()\n"
        "        messages = tfds.features.Sequence({'role': text, 'content': text})\n"
        "        features = {'text': text, 'title': text, 'messages': messages}\n"
        "        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))\n\n"
        "    def _split_generators(self, manager):\n"
        "        return {'train': self._generate_examples()}\n\n"
        "    def _generate_examples(self):\n"
        "        for i in range(5):\n"
        "            yield i, {'text': f'number {i} ☃', 'title': str(i), 'messages': [\n"
        "                {'role': 'user', 'content': 'é'}, {'role': 'assistant', 'content': str(i)}]}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from tiny_builders.tiny_text import TinyText

    TinyText(data_dir=str(tmp_path / "data"), file_format="array_record").download_and_prepare()
    path = f"tfds:tiny_text:1.0.0?split=train&data_dir={tmp_path / 'data'}"
    assert sorted(_read(path)) == [f"number {i} ☃" for i in range(5)]
    assert sorted(_read(path, text_field="title")) == list("01234")
    chats = [parse_record(record, {}) for _, record in read_records(SourceConfig(path))]
    assert sorted(chat.messages[1]["content"] for chat in chats) == list("01234")
    for split, count in {"train[:2]+train[3:]": 4, "train+train": 10, "train[:40%25]": 2, "train[:40%]": 2}.items():
        assert len(_read(path.replace("split=train", f"split={split}"))) == count
        assert len(list(read_records(SourceConfig(path.replace("split=train", f"split={split}"))))) == count
    assert len(_read(path.replace("split=train&", ""), split="train+train[:1]")) == 6
    with pytest.raises(UserError, match="names another split than 'test'"):
        _read(path, split="test")
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match="has no field 'body'"):
        _read(path, text_field="body")
    with pytest.raises(UserError, match="cannot be opened"):
        _read(path.replace("split=train", "split=test"))
    with pytest.raises(UserError, match="cannot be opened"):
        _read(path.replace("tiny_text", "no_such_text"))
    assert tfds is sys.modules["tensorflow_datasets"]


def test_the_files_of_tasks_are_read_as_people_have_them(tmp_path):
    from slmjax.evaluation.tasks.pubmedqa import read_pubmedqa
    from slmjax.evaluation.tasks.text_to_sql.records import read_questions

    def write(answer):
        question = {"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": answer}
        (tmp_path / "ori_pqal.json").write_text(json.dumps({"1": question}), encoding="utf-8-sig")
        (tmp_path / "test_ground_truth.json").write_text("{}")

    for answer in ("yes", "Yes", " YES\n"):
        write(answer)
        assert [record["completion"] for record in read_pubmedqa(tmp_path, "train")] == [" yes"]
    for answer, message in {
        "perhaps": "question 1 has the answer 'perhaps', which is none of yes, no, maybe",
        None: "lacks",
    }.items():
        write(answer)
        with pytest.raises(UserError, match=message):
            read_pubmedqa(tmp_path, "train")
    for more in ({}, {"variables": None}, {"variables": {}}):
        entry = {"sql": ["SELECT 1"], "sentences": [{"text": "t", "question-split": "test", **more}]}
        (tmp_path / "a.json").write_text(json.dumps([entry]), encoding="utf-8-sig")
        assert [question.text for question in read_questions(tmp_path / "a.json", "test")] == ["t"]
