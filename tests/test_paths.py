"""Paths as people have them: any name, ~, and addresses, which are told what works."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.cli.main import main
from slmjax.cli.shared.config_files import load_config
from slmjax.data.config import DataConfig, SourceConfig
from slmjax.data.conversations.encoding import sft_template
from slmjax.data.sft_config import SftConfig
from slmjax.data.sources import source_files
from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.observers.plots import plot_forgetting, plot_interpolation, plot_loss
from slmjax.tokenization.tokenizer import load_tokenizer, train_bpe
from slmjax.training.checkpoints.checkpointer import Checkpointer

NAMES = [
    "[2026] a",
    "a*b?",
    "100%41",
    "$HOME",
    "{x}_$y^$z_",
    "a b'\"",
    "back\\slash",
    "ünï-日本",
    "#1&2;~",
    "-x",
    "new\nline",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the old river walks"] * 4, 260, progress=False)


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("gs://bucket/run", "mount the bucket (gcsfuse bucket DIRECTORY)"),
        ("s3://bucket/a/b", "mount the bucket (mount-s3 bucket DIRECTORY)"),
        ("abfs://a@b/c", "mount the bucket (a FUSE file system)"),
        ("https://example.org/a.jsonl", "download it and give the path of the file"),
        ("https://huggingface.co/org/name/tree/main", "a model of the hub goes by its name, org/name;"),
        ("hf://org/name", "a model of the hub goes by its name, org/name;"),
        ("hf://datasets/org/name/data.parquet", "hf download --repo-type dataset org/name --local-dir DIRECTORY"),
        ("https://huggingface.co/datasets/org/name", "hf download --repo-type dataset org/name --local-dir DIRECTORY"),
        ("file:///home/me/x", "give the path alone, /home/me/x"),
        ("HTTPS://example.org", "download it"),
    ],
)
def test_an_address_is_told_what_works(address, instead):
    with pytest.raises(UserError, match=f"The thing is the address {re.escape(address)}, but .*{re.escape(instead)}"):
        local_path(address, "The thing")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config", "ADDRESS.py", "--workdir", "x"],
        ["train", "--config", "config.py", "--workdir", "ADDRESS"],
        ["train", "--config", "config.py", "--workdir", "x", "--config.data.cache_dir=ADDRESS"],
        ["train", "--config", "config.py", "--workdir", "x", "--config.data.tokenizer=ADDRESS"],
        ["train", "--config", "config.py", "--workdir", "x", "--config.data.sources.t.path=ADDRESS"],
        ["train", "--config", "config.py", "--workdir", "x", "--config.training.branch_from=ADDRESS"],
        ["train", "--config", "config.py", "--workdir", "x", "--config.peft.base=ADDRESS"],
        ["generate", "--model", "ADDRESS", "--prompt", "a"],
        ["chat", "--model", "ADDRESS"],
        ["evaluate", "--model", "m", "--text", "ADDRESS"],
        ["evaluate", "--model", "m", "--tasks", "text2sql", "--data-dir", "ADDRESS"],
        ["evaluate", "--model", "m", "--text", "config.py", "--output", "ADDRESS"],
        ["inspect", "ADDRESS"],
        ["convert", "ADDRESS", "x"],
        ["interpolate", "ADDRESS"],
        ["data", "prepare", "--source", "ADDRESS", "--tokenizer", "train:300", "--output", "x"],
        ["data", "prepare", "--source", "config.py", "--tokenizer", "ADDRESS", "--output", "x"],
        ["data", "prepare", "--source", "config.py", "--tokenizer", "train:300", "--output", "ADDRESS"],
        ["data", "inspect", "ADDRESS"],
        ["tokenizer", "train", "--source", "ADDRESS", "--vocab-size", "300", "--output", "x"],
        ["tokenizer", "train", "--source", "config.py", "--vocab-size", "300", "--output", "ADDRESS"],
        ["tokenizer", "inspect", "ADDRESS"],
        ["quickstart", "--workdir", "ADDRESS"],
    ],
    ids=" ".join,
)
def test_every_command_tells_an_address_and_a_home_that_is_not_there(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    for path, said in (
        ("s3://bucket/x", "is the address s3://bucket/x"),
        ("~nosuchuser/x", "~nosuchuser is not known"),
    ):
        assert main([argument.replace("ADDRESS", path) for argument in command]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1, told
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


CONFIG = """
from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config, set_budget
def get_config(name="text"):
    sizes = dict(vocab_size=300, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=24, context_length=32)
    c = default_config(ModelConfig(**sizes))
    c.data.sources.t = {"path": f"~/{name}.txt"}
    c.data.tokenizer, c.data.sequence_length = "train:300", 16
    set_budget(c, steps=1)
    return c
"""


def test_home_is_expanded_wherever_a_path_is_given(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tokenizer.save(tmp_path / "home" / "tok")
    (tmp_path / "home" / "text.txt").write_text("\n\n".join(f"line {i} of a text" for i in range(60)))
    (tmp_path / "home" / "c.py").write_text(CONFIG)
    (tmp_path / "home" / "chat.jinja").write_text("{{ messages[0]['content'] }}")
    assert load_config("~/c.py:/other", []).data.sources.t.path == "~//other.txt"
    data = DataConfig(
        sources={"t": SourceConfig("~/te*.txt")}, tokenizer="~/tok", cache_dir="~/cache", sequence_length=16
    )
    assert open_corpus(data, tmp_path / "unused", progress=False).tokenizer.fingerprint == tokenizer.fingerprint
    assert (tmp_path / "home" / "cache" / "corpus" / "prepared.json").is_file()
    alone = DataConfig(cache_dir="~/cache/corpus", sequence_length=16)
    assert open_corpus(alone, tmp_path / "unused", progress=False).train.stores
    assert sft_template(SftConfig(chat_template="~/chat.jinja"), tokenizer).source.startswith("{{ messages")
    assert main(["data", "inspect", "~/cache/corpus", "--json"]) == 0
    assert main(["tokenizer", "inspect", "~/tok"]) == 0
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_text_is_found_below_any_name(tmp_path, name, tokenizer):
    place = tmp_path / name
    place.mkdir()
    for file in ("a.txt", "b.txt", "c.jsonl"):
        (place / file).touch()
    assert [path.name for path in source_files(SourceConfig(str(place / "*.txt")))] == ["a.txt", "b.txt"]
    assert [path.name for path in source_files(SourceConfig(str(place / "[ac].*")))] == ["a.txt", "c.jsonl"]
    assert [path.name for path in source_files(SourceConfig(str(place / "a.txt")))] == ["a.txt"]
    assert len(source_files(SourceConfig(str(tmp_path / "**" / "*.txt")))) == 2
    with pytest.raises(UserError, match=r"There is no data at|missing\.txt has no files"):
        source_files(SourceConfig(str(place / "missing.txt")))
    tokenizer.save(place / "tokenizer")
    assert load_tokenizer(place / "tokenizer").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", ["[1]$x%", "back\\slash", "a:"])
def test_checkpoints_are_kept_below_any_name(tmp_path, name):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    want = {"a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
    writer = Checkpointer(tmp_path / name / "checkpoints")
    writer.save(3, {"a": np.arange(4, dtype=np.float32)}, position={}, run_config={})
    writer.close()
    reader = Checkpointer(tmp_path / name / "checkpoints")
    assert reader.restore_latest(want).state["a"].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
        reader.restore(4, want)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_pictures_stand_any_name(tmp_path):
    lines = [{"step": i, "split": s, "loss": 2.0, "learning_rate": 1e-3, "validation_loss": 2.0, "general_loss": 2.0}
             for i in range(1, 4) for s in ("train", "validation")]  # fmt: skip
    title = "".join(NAMES).replace("\n", " ") + "$\\frac{$ $_$"
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_loss(metrics, tmp_path / "loss.png", title=title)
        plot_forgetting(metrics, tmp_path / "forgetting.png", title=title)
        plot_interpolation([{"weight": 0.0, "general_loss": 1.0}], tmp_path / "curve.png", title=title)
    for name in ("loss", "forgetting", "curve"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
