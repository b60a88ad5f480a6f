"""Compressed files are read to their end or refused, however they were joined, padded or cut."""

import bz2
import gzip
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.config import DataConfig, SourceConfig
from slmjax.data.prepare import prepare, tokenizer_for
from slmjax.data.reading.compression import blocks, lines
from slmjax.data.sources import read_documents, read_records
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import train_bpe

zstandard = pytest.importorskip("zstandard")


def _zst(data: bytes, **values) -> bytes:
    return zstandard.ZstdCompressor(**values).compress(data)


COMPRESS = {"gz": gzip.compress, "zst": _zst, "xz": lzma.compress, "bz2": bz2.compress}
KINDS = pytest.mark.parametrize("kind", COMPRESS)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def _content(path) -> bytes:
    return b"".join(blocks(path))


@KINDS
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4), data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_file_cut_anywhere_is_refused_and_a_whole_one_read_however_many_parts_it_has(
    kind, parts, data, tmp_path_factory
):
    path = tmp_path_factory.mktemp("cut") / f"a.{kind}"
    compressed = [COMPRESS[kind](part) for part in parts]
    whole = b"".join(compressed)
    path.write_bytes(whole)
    assert _content(path) == b"".join(parts)
    size = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:size])
    ends = {sum(map(len, compressed[:n])): n for n in range(1, len(parts) + 1)}
    if size in ends:  # what is there is whole
        assert _content(path) == b"".join(parts[: ends[size]])
    else:
        with pytest.raises(UserError, match=r"a\.\w+ is damaged or incomplete \(.*\): fetch") as caught:
            _content(path)
        assert "\n" not in str(caught.value)


@KINDS
@given(junk=st.binary(min_size=1, max_size=40).filter(lambda junk: junk.strip(b"\0")))
@settings(deadline=None, max_examples=20)
def test_what_follows_the_data_and_is_none_is_told(kind, junk, tmp_path_factory):
    path = tmp_path_factory.mktemp("junk") / f"a.{kind}"
    path.write_bytes(COMPRESS[kind](b"one\n") + junk)
    with pytest.raises(UserError, match="damaged or incomplete"):
        _content(path)


@KINDS
def test_a_large_file_comes_in_bounded_blocks_and_its_bytes_are_told(write, kind):
    text = b"".join(b"%d word\n" % i for i in range(60_000))
    path = write(f"a.txt.{kind}", COMPRESS[kind](text) + COMPRESS[kind](b"end"))
    told = []
    found = list(blocks(path, told.append, 1 << 16))
    assert b"".join(found) == text + b"end"
    assert max(map(len, found)) <= 1 << 16
    assert sum(told) == path.stat().st_size
    assert list(lines(path)) == [*text.split(b"\n")[:-1], b"end"]


def test_padding_between_parts_is_passed_over(write):
    for kind in ("gz", "xz", "bz2"):
        part = COMPRESS[kind](b"one")
        assert _content(write(f"a.{kind}", part + bytes(8) + part + bytes(4))) == b"oneone"


def test_zstandard_with_long_windows_checksums_skippable_frames_and_unknown_sizes(write):
    text = bytes(range(256)) * 2000
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True, write_checksum=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # of a size that it does not know
    long = stream.compress(text) + stream.flush()
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    joined = skippable + long + skippable + _zst(text, write_checksum=False) + skippable
    assert _content(write("a.zst", joined)) == text * 2
    assert _content(write("a.zstd", joined)) == text * 2
    for cut in (1, 10, len(skippable) + 1):
        with pytest.raises(UserError, match="its last frame has no end"):
            _content(write("a.zst", joined[:-cut]))


def test_zstandard_that_cannot_be_decompressed_says_why(write):
    with pytest.raises(UserError, match="a window above 2 GiB, so compress it again"):
        _content(write("a.zst", b"\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00"))
    with pytest.raises(UserError, match="no frame begins at byte 0"):
        _content(write("a.zst", b"plain text"))
    with pytest.raises(UserError, match="it needs a dictionary"):
        _content(write("a.zst", b"\x28\xb5\x2f\xfd\x21\x07\x01\x01\x00\x00"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.txt.gz", "a.json.zst"])
def test_a_pointer_of_git_lfs_is_no_data(write, name):
    path = write(name, b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n")
    with pytest.raises(UserError, match=rf"{name} is a pointer of Git LFS .*: fetch the data with git lfs pull\."):
        list(read_documents(SourceConfig(str(path))))


@KINDS
def test_every_kind_of_records_may_be_compressed(write, kind):
    texts = {
        "jsonl": b'{"text": "a"}\n',
        "json": b'[{"text": "a"}]',
        "csv": b"id,text\n1,a\n",
        "tsv": b"id\ttext\n1\ta\n",
    }
    for name, content in texts.items():
        source = SourceConfig(str(write(f"a.{name}.{kind}", COMPRESS[kind](content))))
        assert list(read_documents(source)) == ["a"]
        assert [record["text"] for _, record in read_records(source)] == ["a"]
    with pytest.raises(UserError, match="compressed Parquet file"):
        list(read_documents(SourceConfig(str(write(f"a.parquet.{kind}", COMPRESS[kind](b"PAR1"))))))


@KINDS
def test_nothing_is_prepared_from_a_file_that_was_cut(write, tmp_path, kind):
    lines = b"".join(b'{"text": "%d is a number"}\n' % i for i in range(5000))
    path = write(f"a.jsonl.{kind}", COMPRESS[kind](lines)[:-20])
    config = DataConfig(sources={"a": {"path": str(path)}}, tokenizer="train:300")
    with pytest.raises(UserError, match="damaged or incomplete"):
        tokenizer_for(config, tmp_path / "out/tokenizer", progress=False)
    with pytest.raises(UserError, match="damaged or incomplete"):
        prepare(config, train_bpe(["ab"], 257, progress=False), tmp_path / "out/corpus", progress=False)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_lines_of_any_length_keep_their_order(write):
    expected = [bytes([65 + i % 26]) * (700_000 if i % 3 else i) for i in range(9)]
    assert list(lines(write("a.txt", b"\n".join(expected)))) == expected
