"""A disk that fills up under a run or a corpus: one sentence, status 2, and what was there before stays as it was.

The disk is a tmpfs of its own, which only root may mount; elsewhere these tests are skipped.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CONFIG = """
from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config, set_budget


def get_config():
    config = default_config(ModelConfig(vocab_size=300, num_layers=1, embed_dim=128, num_heads=2, num_kv_heads=2,
                                        ffn_dim=256, context_length=64))
    config.data.sources.text = {{"path": {text!r}}}
    config.data.tokenizer = "train:300"
    config.data.cache_dir = {cache!r}
    config.data.sequence_length = 32
    config.data.validation_fraction = 0.0
    config.training.batch_size = 8
    config.checkpoint.every = 2
    config.checkpoint.keep_last = 50
    set_budget(config, steps=200)
    return config
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def slmjax(*arguments):
    argv = [sys.executable, "-m", "slmjax.cli.main", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ, "XLA_FLAGS": ""})
    said = [line for line in done.stderr.splitlines() if line.startswith("slmjax: error: ")]
    assert done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return said[0]


def write_text(path, sentences):
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "walk", "under", "the", "old", "a", "of", "and"]
    path.write_text("\n\n".join(" ".join(rng.choice(words, 12)) + "." for _ in range(sentences)))
    return path


@pytest.mark.slow
def test_a_run_keeps_its_last_good_checkpoint(small_disk, tmp_path):
    from slmjax.formats.models import load

    text = write_text(tmp_path / "text.txt", 400)
    (tmp_path / "config.py").write_text(CONFIG.format(text=str(text), cache=str(tmp_path / "cache")))
    said = slmjax("train", "--config", tmp_path / "config.py", "--workdir", small_disk / "run")
    assert "is full" in said and "last good checkpoint: step " in said
    good = int(said.rpartition("last good checkpoint: step ")[2].split(")")[0])
    steps = sorted(int(path.name) for path in (small_disk / "run" / "checkpoints").iterdir())  # no half-written one
    assert good == steps[-1] >= 2
    assert load(small_disk / "run").config.embed_dim == 128
    lines = [json.loads(line) for line in (small_disk / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1


@pytest.mark.slow
def test_a_corpus_is_there_whole_or_not_at_all(small_disk, tmp_path):
    text = write_text(tmp_path / "text.txt", 150_000)  # more tokens than the disk holds
    said = slmjax("data", "prepare", "--source", text, "--tokenizer", "train:257", "--output", small_disk / "out")
    assert "The disk is full while writing" in said
    assert not (small_disk / "out" / "corpus").exists()
    assert not list(small_disk.rglob("*partial*"))


def test_a_saved_model_is_there_whole_or_not_at_all(small_disk, tmp_path):
    import jax

    import slmjax as package
    from slmjax.errors import UserError
    from slmjax.inference.language_model import LanguageModel
    from slmjax.models.config import ModelConfig
    from slmjax.models.transformer import Transformer
    from slmjax.tokenization.tokenizer import train_bpe

    config = ModelConfig(vocab_size=300, num_layers=1, embed_dim=512, num_heads=2, num_kv_heads=2, ffn_dim=2048)
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]  # 17 MB
    tokenizer = train_bpe(["a b c"], 257, progress=False)
    with pytest.raises(UserError, match="The disk is full while writing"):
        package.save(LanguageModel(config=config, params=params, tokenizer=tokenizer), small_disk / "model")
    assert not list(small_disk.iterdir())
