"""A model split over files is the model: any part opens all of them, and what does not belong together is refused."""

import dataclasses
import shutil
import struct
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slmjax
from slmjax.errors import UserError
from slmjax.formats.gguf.blocks import BLOCK_TYPES
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.model import save_gguf
from slmjax.formats.gguf.writer import write_gguf
from slmjax.formats.tensors import PlannedTensor
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny import noise, param_shapes

CONFIG = ModelConfig(vocab_size=264, num_layers=2, embed_dim=32, num_heads=2, ffn_dim=32, context_length=16)
PARTS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model in one file, which every test copies from."""
    tokenizer = train_bpe(["the cat sat on the mat"] * 3, 260, progress=False)
    lm = LanguageModel(config=CONFIG, params=noise(param_shapes(CONFIG)), tokenizer=tokenizer)
    return save_gguf(lm, tmp_path_factory.mktemp("whole") / "m.gguf", dtype="q8_0")


def split_with_the_gguf_package(whole, directory, parts=PARTS, **options):
    """The file's metadata and tensors, written by the package's writer over `parts` files."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(whole)
    most = -(-len(reader.tensors) // parts)
    writer = gguf.GGUFWriter(directory / "m.gguf", "llama", split_max_tensors=most, **options)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, sub = field.types[0], field.types[-1]
            writer.add_key_value(name, field.contents(), kind, sub if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(directory.glob("*.gguf"))


@pytest.fixture(scope="module")
def split(whole, tmp_path_factory):
    files = split_with_the_gguf_package(whole, tmp_path_factory.mktemp("split"))
    assert [f.name for f in files] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return files


@pytest.mark.parametrize("part", range(PARTS))
def test_any_part_opens_the_whole_model(whole, split, part):
    expected, lm = slmjax.load(whole), slmjax.load(split[part])
    assert lm.config == expected.config and lm.stop_ids == expected.stop_ids
    assert lm.tokenizer.encode("the cat sat") == expected.tokenizer.encode("the cat sat")
    jax.tree.map(np.testing.assert_array_equal, lm.params, expected.params)
    facts, one = slmjax.inspect(split[part]), slmjax.inspect(whole)
    assert facts.pop("files") == PARTS and facts.pop("file_bytes") == sum(f.stat().st_size for f in split)
    assert facts == {key: value for key, value in one.items() if key != "file_bytes"}


def test_a_split_model_converts_as_the_whole_one_does(whole, split, tmp_path):
    written = []
    for name, source in (("split", split[1]), ("whole", whole)):
        (tmp_path / name).mkdir()
        written.append(slmjax.convert(source, tmp_path / name / "m.gguf", format="gguf", dtype="q8_0").read_bytes())
    assert written[0] == written[1]


def test_a_first_part_of_metadata_alone(whole, tmp_path):
    """As gguf-split writes it with --no-tensor-first-split."""
    files = split_with_the_gguf_package(whole, tmp_path, small_first_shard=True)
    assert len(files) == PARTS + 1
    for file in files:
        assert open_gguf(file).shapes() == open_gguf(whole).shapes()


def test_a_link_to_a_part_opens_the_model(whole, split, tmp_path):
    link = tmp_path / "model.gguf"
    link.symlink_to(split[1])
    assert open_gguf(link).shapes() == open_gguf(whole).shapes()


@pytest.mark.parametrize("missing", range(PARTS))
def test_a_missing_part_is_named(split, missing, tmp_path):
    for file in split:
        shutil.copy(file, tmp_path)
    (tmp_path / split[missing].name).unlink()
    given = tmp_path / split[(missing + 1) % PARTS].name
    with pytest.raises(UserError, match=f"{split[missing].name} is not there: put all 3 into one directory") as caught:
        open_gguf(given)
    assert "\n" not in str(caught.value) and str(given) in str(caught.value)


def test_a_part_under_another_name_is_told_to_take_its_name_back(split, tmp_path):
    shutil.copy(split[0], tmp_path / "model.gguf")
    with pytest.raises(UserError, match="its name does not say which: give each the name back"):
        open_gguf(tmp_path / "model.gguf")


def test_parts_in_each_others_place_are_refused(split, tmp_path):
    for file, name in zip(split, (split[0].name, split[2].name, split[1].name), strict=True):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(UserError, match="is not the part 2 of 3"):
        open_gguf(tmp_path / split[0].name)
    with pytest.raises(UserError, match="its name does not say which"):
        open_gguf(tmp_path / split[1].name)


@pytest.mark.parametrize(
    ("metadata", "name", "message"),
    [
        ({"split.no": 1, "split.count": 2, "split.tensors.count": 2}, "a", "as an earlier part has"),
        ({"split.no": 1, "split.count": 2}, "b", "all parts hold 3 tensors, not 2"),
        ({"split.no": 0, "split.count": 2}, "b", "is not the part 2 of 2"),
        ({"split.no": 1, "split.count": 3}, "b", "is not the part 2 of 2"),
        ({}, "b", "is not the part 2 of 2"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(metadata, name, message, tmp_path):
    plain = BLOCK_TYPES["F32"]
    first = {"split.no": 0, "split.count": 2, "split.tensors.count": 3}
    for number, (keys, tensor) in enumerate(((first, "a"), (metadata, name)), start=1):
        path = tmp_path / f"m-0000{number}-of-00002.gguf"
        write_gguf(path, keys, [PlannedTensor(tensor, (4,), plain)], [(tensor, np.zeros(4, np.float32))])
    with pytest.raises(UserError, match=message):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("count", [2, 99_999, 2**32 - 1])
def test_a_part_that_claims_any_number_of_others_costs_nothing(count, tmp_path):
    path = tmp_path / f"m-00001-of-{count:05}.gguf"
    write_gguf(path, {"split.no": 0, "split.count": count}, [], [])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"is not there|does not say which"):
        open_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "metadata", [{}, {"split.count": 0}, {"split.no": 0, "split.count": 1}, {"split.count": "two"}]
)
def test_a_whole_file_is_one_whatever_its_name(metadata, tmp_path):
    path = tmp_path / "m-00001-of-00003.gguf"
    write_gguf(path, metadata, [], [])
    assert dict(open_gguf(path).metadata) == metadata


def test_a_damaged_part_is_refused_by_its_own_name(split, tmp_path):
    for file in split:
        shutil.copy(file, tmp_path)
    damaged = tmp_path / split[1].name
    raw = damaged.read_bytes()
    damaged.write_bytes(raw[:8] + struct.pack("<Q", 2**63) + raw[16:])
    with pytest.raises(UserError, match=f"{damaged.name} claims"):
        open_gguf(tmp_path / split[2].name)


@pytest.fixture(scope="module")
def every_type(tmp_path_factory):
    """Two parts, which hold a tensor of random bits of every type that is read."""
    folder, rng = tmp_path_factory.mktemp("every_type"), np.random.default_rng(0)

    def random_blocks(kind):
        def encode(x):
            return np.frombuffer(rng.bytes(len(x) * kind.dtype.itemsize), kind.dtype)

        return dataclasses.replace(kind, encode=encode, name="F32")  # of which no scale is looked at

    kinds, parts = [(name, random_blocks(kind)) for name, kind in BLOCK_TYPES.items()], []
    for number, own in enumerate((kinds[::2], kinds[1::2])):
        keys = {"split.no": number, "split.count": 2, "split.tensors.count": len(kinds)}
        path = folder / f"m-0000{number + 1}-of-00002.gguf"
        plans = [PlannedTensor(name, (2, kind.size), kind) for name, kind in own]
        write_gguf(path, keys, plans, [(plan.name, np.full(plan.shape, np.nan, np.float32)) for plan in plans])
        parts.append(path.read_bytes())
    assert len(open_gguf(path).tensors) == len(BLOCK_TYPES)
    return folder, parts


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_part_is_read_or_refused(every_type, data):
    """Bytes of a part's header overwritten, removed or doubled: numbers, or one sentence; never anything else."""
    folder, parts = every_type
    which = data.draw(st.integers(0, 1))
    raw = bytearray(parts[which])
    for _ in range(data.draw(st.integers(0, 3))):
        at, size = data.draw(st.integers(0, 600)), data.draw(st.sampled_from([1, 2, 4, 8]))
        junk = data.draw(st.one_of(st.binary(min_size=size, max_size=size), st.sampled_from([b"\xff" * 8, bytes(8)])))
        raw[at : at + data.draw(st.sampled_from([0, size, size]))] = junk
    paths = [folder / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    try:
        for path, content in zip(paths, parts, strict=True):
            path.write_bytes(raw if path == paths[which] else content)
        file = open_gguf(paths[data.draw(st.integers(0, 1))])
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
    except UserError as error:
        assert "\n" not in str(error)
