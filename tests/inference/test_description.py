"""slmjax.json: what is written is read back, runs made before it are described alike, and hostile files are refused."""

import dataclasses
import json

import pytest

from slmjax.errors import UserError
from slmjax.inference.description import FILE_NAME, Description, is_described
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.peft.config import PeftConfig

MODEL = ModelConfig(
    vocab_size=300,
    num_layers=2,
    embed_dim=32,
    num_heads=(4, 2),
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=(48, 40),
    context_length=64,
    rope_theta=5e7,
    rope_scaling=RopeScaling("linear", factor=2.0),
)
LORA = {"method": "lora", "base": "some/base", "fingerprint": "ab" * 8, "train": ("final_norm/scale",)}
LORA |= {"lora": {"r": 3, "targets": ("q_proj",), "rank_pattern": (("k_proj", 2),)}}
RUN = Description(
    kind="run",
    model=MODEL,
    peft=PeftConfig(**LORA),
    averaged=True,
    add_bos=True,
    stop_ids=(0, 7),
    total_steps=12,
)


@pytest.mark.parametrize(
    "description",
    [
        RUN,
        Description(kind="run", model=MODEL),
        Description(
            kind="model", model=MODEL, stop_ids=(3,), names="huggingface", tokenizer_changes={"without": ["a"]}
        ),
    ],
)
def test_what_is_written_is_read(description, tmp_path):
    assert not is_described(tmp_path)
    assert description.write(tmp_path) == tmp_path / FILE_NAME
    assert is_described(tmp_path) and Description.read(tmp_path) == description


def test_a_run_made_before_is_described_from_its_config(tmp_path):
    config = {
        "model": MODEL.to_dict(),
        "peft": json.loads(json.dumps(dataclasses.asdict(RUN.peft))),
        "training": {"ema_decay": 0.5, "steps": 0, "tokens": 384, "tokens_per_param": 0.0, "batch_size": 2},
        "data": {"add_bos": True, "sequence_length": 16},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"stop_ids": [0, 7]}')
    assert Description.read(tmp_path) == RUN
    # The least that the first runs wrote: all else has today's defaults, and the tokenizer lies with the corpus.
    (tmp_path / "config.json").write_text(json.dumps({"model": MODEL.to_dict(), "training": {"steps": 3}}))
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer").rmdir()
    plain = Description(kind="run", model=MODEL, total_steps=3, tokenizer="data/tokenizer")
    assert Description.read(tmp_path) == plain
    (tmp_path / "data" / "corpus").mkdir(parents=True)
    assert Description.read(tmp_path).tokenizer == "data/corpus/tokenizer"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"kind": "other"}, "'run' or 'model'"),
        ({"names": "torch"}, "'huggingface' or 'slmjax'"),
        ({"wings": 2}, "wings"),
        ({"model": None}, "does not describe a model"),
        ({"model": MODEL.to_dict() | {"num_layers": 10**9}}, "num_layers"),
        ({"model": MODEL.to_dict() | {"vocab_size": 10**12}}, "vocab_size"),
        ({"model": MODEL.to_dict() | {"num_layers": "two"}}, "describes a model that this version cannot read"),
        ({"model": MODEL.to_dict() | {"norm_eps": float("inf")}}, "norm_eps"),
        ({"peft": {"method": "lora", "lora": {"r": 10**12}}}, r"peft\.lora\.r"),
        ({"peft": {"method": "lora", "lora": {"r": "two"}}}, "describes a fine-tune that this version cannot read"),
        ({"peft": {"method": "magic"}}, "magic"),
        ({"peft": {"metod": "lora"}}, "did you mean 'method'"),
        ({"peft": []}, "must be an object"),
        ({"stop_ids": [-1]}, "stop_ids"),
        ({"stop_ids": [True]}, "stop_ids"),
        ({"stop_ids": list(range(5000))}, "stop_ids"),
        ({"stop_ids": 3}, "stop_ids"),
        ({"averaged": "yes"}, "true or false"),
        ({"add_bos": 1}, "true or false"),
        ({"total_steps": -1}, "total_steps"),
        ({"tokenizer": ["a"]}, "tokenizer"),
    ],
)
def test_what_makes_no_sense_is_named(changes, said, tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps(RUN.to_dict() | changes))
    with pytest.raises(UserError, match=said):
        Description.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"version": 1', "\ud800"])
def test_what_is_no_json_is_refused(text, tmp_path):
    (tmp_path / FILE_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"JSON|UTF-8"):
        Description.read(tmp_path)


def test_a_link_out_of_the_directory_is_not_followed(tmp_path):
    RUN.write(tmp_path / "there")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / FILE_NAME).symlink_to(tmp_path / "there" / FILE_NAME)
    with pytest.raises(UserError, match="leads out"):
        Description.read(tmp_path / "here")
