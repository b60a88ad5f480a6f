"""Directories as people have them: links followed, loops noticed, datasets of Hugging Face read by their splits."""

import itertools
import json
import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.config import DataConfig, SourceConfig
from slmjax.data.prepare import corpus_fingerprint
from slmjax.data.reading.datasets import Part
from slmjax.data.sources import read_documents, read_records, source_files
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import train_bpe


def _read(path, **values) -> list[str]:
    return sorted(read_documents(SourceConfig(str(path), **values)))


def _fill(root, files: dict[str, str]):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def _jsonl(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@given(
    st.lists(st.sampled_from(["a", "b", "a/c", "a/c/d"]), max_size=3, unique=True),
    st.lists(
        st.tuples(st.sampled_from(["", "a", "b", "a/c"]), st.sampled_from(["", "a", "b", "a/c", "../x"])), max_size=5
    ),
)
@settings(deadline=None, max_examples=40)
def test_each_file_is_read_once_through_any_links_and_loops(tmp_path_factory, filled, links):
    base = tmp_path_factory.mktemp("links")
    root = base / "root"
    for directory in ("a", "b", "a/c/d", "../x"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    expected = {"top"}
    _fill(root, {"0.txt": "top"} | {f"{directory}/1.txt": directory for directory in filled})
    expected |= set(filled)
    _fill(base, {"x/1.txt": "outside"})
    for number, (place, target) in enumerate(links):
        (root / place / f"link{number}").symlink_to(root / target)
        expected |= {"outside"} if target == "../x" else set()
    assert _read(root) == _read(root / "**/*.txt") == _read(root / "**") == sorted(expected)
    assert [path.name for path in source_files(SourceConfig(str(root)))].count("0.txt") == 1


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    _fill(tmp_path, {"a.txt": "a"})
    (tmp_path / "more").symlink_to(tmp_path / "unmounted")
    (tmp_path / ".#a.txt").symlink_to("someone@host:1")  # Emacs locks files so
    for path in (tmp_path, tmp_path / "*"):
        with pytest.raises(UserError, match=r"more is a link to .*unmounted, which is not there: mount"):
            _read(path)
    assert _read(tmp_path / "*.txt") == ["a"]


def test_the_cache_of_the_hub_is_read_by_the_names_that_lead_to_its_blobs(tmp_path):
    root = _fill(tmp_path / "datasets--a--b", {"blobs/0123abcd": _jsonl("a"), "refs/main": "f00"})
    for revision in ("f00", "f01"):
        (root / "snapshots" / revision).mkdir(parents=True)
        (root / "snapshots" / revision / "train.jsonl").symlink_to("../../blobs/0123abcd")
    for path in (root, root / "snapshots/f00", root / "**/*.jsonl", root / "**"):
        assert _read(path) == ["a"]
    (root / "snapshots/f01/picture.png").symlink_to("../../blobs/nowhere")
    assert _read(root) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_directory_that_may_not_be_read_is_told(tmp_path):
    _fill(tmp_path, {"a/a.txt": "a", "b.txt": "b"})
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="cannot be listed"):
        _read(tmp_path)
    (tmp_path / "a").chmod(0o755)


def test_names_with_brackets_are_taken_as_they_are(tmp_path):
    _fill(tmp_path, {"data[1]/a.txt": "a", "data[1]/b[2].txt": "b", "data1/c.txt": "c", "data2/d.txt": "d"})
    assert _read(tmp_path / "data[1]") == ["a", "b"]
    assert _read(tmp_path / "data[1]/*.txt") == ["a", "b"]
    assert _read(tmp_path / "data[1]/b[2].txt") == ["b"]
    assert _read(tmp_path / "data[2]/*.txt") == ["d"]
    assert _read(tmp_path / "data?/*.txt") == ["c", "d"]


CARD = "---\nlicense: mit\ntask_categories:\n- text-generation\n---\n# A card\n"


@pytest.fixture
def hub(tmp_path):
    """A repository of the hub."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = {"README.md": CARD, "LICENSE.txt": "mit", "dataset_infos.json": "{}", "corpus.py": "import datasets"}
    root = _fill(tmp_path / "corpus", {**files, ".gitattributes": "*.parquet filter=lfs diff=lfs\n"})
    (root / "data").mkdir()
    splits = {"train-00000-of-00002": "ab", "train-00001-of-00002": "c", "test-00000-of-00001": "t"}
    for name, texts in splits.items():
        parquet.write_table(pyarrow.table({"text": list(texts)}), root / f"data/{name}.parquet")
    return root


def test_of_a_datasets_repository_the_data_is_read_by_splits_and_nothing_else(hub):
    with pytest.warns(UserWarning, match="the split train is read, and not test"):
        assert _read(hub) == ["a", "b", "c"]
    assert _read(hub, split="test") == ["t"]
    assert _read(hub, split="train+test") == ["a", "b", "c", "t"]
    assert _read(hub, split="training") == ["a", "b", "c"]
    assert list(read_documents(SourceConfig(str(hub), split="train[1:]+test[:100%]+train[:1]"))) == list("bcta")
    assert _read(hub / "data/*.parquet") == ["a", "b", "c", "t"]
    assert [record["text"] for _, record in read_records(SourceConfig(str(hub), split="train[-1:]"))] == ["c"]
    with pytest.raises(UserError, match="has no split 'tset': did you mean 'test'"):
        _read(hub, split="tset")
    (hub / "data/train-00001-of-00002.parquet").unlink()
    with pytest.warns(UserWarning, match=r"has 1 of the 2 files train-\*-of-00002"):
        _read(hub, split="train")


def test_the_card_of_a_dataset_of_text_is_left_out_and_other_readmes_are_text(tmp_path):
    root = _fill(tmp_path / "a", {"README.md": CARD, "train.txt": "a", "valid.txt": "v", "a.py": "import datasets"})
    with pytest.warns(UserWarning, match="not validation"):
        assert _read(root) == ["a"]
    assert _read(root, split="validation+train") == ["a", "v"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _read(_fill(tmp_path / "b", {"README.md": "# text", "train.txt": "t", "test.txt": "u"})) == [
            "# text",
            "t",
            "u",
        ]
        assert _read(_fill(tmp_path / "c", {"README.md": "# records", "train.jsonl": _jsonl("t")})) == ["t"]


def test_splits_of_their_own_names_need_to_be_chosen(tmp_path):
    name = "data/{}-00000-of-00001.jsonl".format
    _fill(tmp_path, {"README.md": CARD, name("train_sft"): _jsonl("a"), name("train_gen"): _jsonl("b")})
    with pytest.raises(UserError, match=r"has the splits train_gen, train_sft: set the split"):
        _read(tmp_path)
    assert _read(tmp_path, split="train_sft") == ["a"]


def _save(directory, batches, **state):
    pyarrow, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    directory.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(batches):05}.arrow" for i in range(len(batches))]
    for name, texts in zip([*names, "cache-0123456789abcdef.arrow"], [*batches, ["cached"]], strict=True):
        table = pyarrow.table({"text": texts})
        with ipc.new_stream(str(directory / name), table.schema) as writer:
            writer.write_table(table)
    files = {"_data_files": [{"filename": name} for name in names], "_split": "train", **state}
    (directory / "state.json").write_text(json.dumps(files))
    (directory / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return directory


def test_what_save_to_disk_writes_is_read_whole_or_refused(tmp_path):
    one = _save(tmp_path / "one", [["a", "b"], ["c"]])
    assert _read(one) == ["a", "b", "c"]
    (one / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"one is incomplete, since data-00001-of-00002\.arrow is missing"):
        _read(one)
    for split, texts in {"train": ["a"], "test": ["t"]}.items():
        _save(tmp_path / "several" / split, [texts])
    (tmp_path / "several/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.warns(UserWarning, match="not test"):
        assert _read(tmp_path / "several") == ["a"]
    assert _read(tmp_path / "several", split="test+train") == ["a", "t"]
    with pytest.raises(UserError, match="stores its rows by indices"):
        _read(_save(tmp_path / "indexed", [["a"]], _indices_data_files=[{"filename": "indices.arrow"}]))


@given(st.integers(0, 50), st.integers(-60, 60), st.integers(-60, 60), st.booleans(), st.booleans())
def test_limits_are_those_of_slices(count, begin, end, no_begin, no_end):
    part = Part([], "" if no_begin else str(begin), "" if no_end else str(end))
    expected = list(range(count))[None if no_begin else begin : None if no_end else end]
    assert list(range(*part.limits(count))) == expected


@given(st.integers(0, 500), st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_percentages_share_everything_without_overlap(count, cuts):
    edges = ["", *(f"{cut}%" for cut in sorted(cuts)), ""]
    parts = [range(*Part([], a, b).limits(count)) for a, b in itertools.pairwise(edges)]
    assert [number for part in parts for number in part] == list(range(count))


@pytest.mark.parametrize("split", ["train[", "train+", "+", "train[a:b]", "train[1:2:3]", 5, "a b"])
def test_splits_that_cannot_be_are_refused(split):
    with pytest.raises(UserError, match=r"The split .* must be names of splits, as in train, train\[:10%\]"):
        SourceConfig("a", split=split)


def test_a_split_changes_what_is_prepared_and_none_does_not(tmp_path):
    _fill(tmp_path, {"train.txt": "a", "test.txt": "b"})
    tokenizer = train_bpe(["ab"], 257, progress=False)

    def fingerprint(**values):
        return corpus_fingerprint(DataConfig(sources={"a": {"path": str(tmp_path), **values}}), tokenizer)

    assert fingerprint() == fingerprint(split="") != fingerprint(split="train") != fingerprint(split="train+test")
