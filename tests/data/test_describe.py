"""The description counts what is there."""

import json

import pytest

from slmjax.data.config import DataConfig
from slmjax.data.describe import describe
from slmjax.data.prepare import prepare
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import train_bpe


def test_a_corpus_is_described_by_split_and_source(tmp_path):
    texts = [f"text number {i} " * (i + 1) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_bpe(texts, 280, progress=False)
    config = DataConfig(sources={"a": {"path": str(tmp_path / "a.jsonl")}}, validation_fraction=0.2)
    directory = prepare(config, tokenizer, tmp_path / "corpus", progress=False)
    description = describe(directory, samples=2)
    assert json.loads(json.dumps(description)) == description
    both = [description[split]["a"] for split in ("train", "validation")]
    assert sum(d["documents"] for d in both) == 30
    assert sum(d["bytes"] for d in both) == sum(len(text) for text in texts)
    assert sum(d["tokens"] for d in both) == sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert both[0]["bytes_per_token"] == both[0]["bytes"] / both[0]["tokens"]
    assert both[0]["document_tokens"]["0"] <= both[0]["document_tokens"]["50"] <= both[0]["document_tokens"]["100"]
    assert len(both[0]["samples"]) == 2
    assert all(any(text.startswith(sample) for text in texts) for sample in both[0]["samples"])
    assert describe(directory / "train" / "a", samples=2) == both[0]


def test_anything_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a prepared corpus"):
        describe(tmp_path)
