"""A run that goes on after its text, its tokenizer or its budget has changed: what was trained stays valid."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.finetuned import describe_run
from slmjax.recipes.identity import begun_in, with_begun_warmup
from slmjax.recipes.pretraining import TextBatches
from slmjax.tokenization.tokenizer import train_bpe
from slmjax.training.schedules import make_schedule

MODEL = ModelConfig(vocab_size=400, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=24, context_length=32)


def words(seed, count=200):
    rng = np.random.default_rng(seed)
    letters = "abcdefghijklmnop" if seed == 0 else "klmnopqrstuvwxyz"
    return "\n\n".join(" ".join("".join(rng.choice(list(letters), 3)) for _ in range(12)) for _ in range(count))


@pytest.fixture
def begun(tmp_path):
    """(config, workdir) of a run with a checkpoint, its text and its corpus, as far as the data are concerned."""
    text, workdir = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(words(0))
    config = default_config(MODEL)
    config.data.sources.text = {"path": str(text)}
    config.data.tokenizer, config.data.sequence_length, config.data.validation_fraction = "train:280", 16, 0.1
    set_budget(config, steps=6)
    config = run_config(config)
    corpus = open_corpus(config.data, workdir / "data", progress=False)
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    corpus.tokenizer.save(workdir / "tokenizer")
    describe_run(config).write(workdir)
    assert begun_in(workdir) == workdir
    return config, workdir


def reopened(run, **changes):
    config, workdir = run
    return open_corpus(dataclasses.replace(config.data, **changes), workdir / "data", progress=False, begun=workdir)


def test_a_run_goes_on_with_its_corpus_when_the_text_has_changed_or_is_gone(begun, capsys, tmp_path):
    before = reopened(begun)
    assert capsys.readouterr().err == ""
    (tmp_path / "text.txt").write_text(words(1))
    after = reopened(begun)
    assert after.digest() == before.digest() and after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert "is not as it was when it was prepared; the run goes on with what was prepared" in capsys.readouterr().err
    (tmp_path / "text.txt").unlink()
    assert reopened(begun).digest() == before.digest()
    assert "the text is gone" in capsys.readouterr().err
    assert reopened(begun, on_change="use").digest() == before.digest()


def test_other_text_is_read_in_the_tokens_that_the_run_began_with(begun, tmp_path):
    before = reopened(begun)
    (tmp_path / "text.txt").write_text(words(1))
    after = reopened(begun, on_change="use")
    assert after.digest() != before.digest() and after.tokenizer.fingerprint == before.tokenizer.fingerprint
    shutil.rmtree(begun[1] / "data")
    lost = reopened(begun)
    assert lost.digest() == after.digest() and lost.tokenizer.fingerprint == before.tokenizer.fingerprint
    (tmp_path / "text.txt").unlink()
    shutil.rmtree(begun[1] / "data")
    with pytest.raises(UserError, match="There is no data at"):
        reopened(begun)


def test_a_corpus_of_another_tokenizer_is_refused(begun, tmp_path):
    train_bpe([words(1)], 290, progress=False).save(tmp_path / "other")
    config, workdir = begun
    data = dataclasses.replace(config.data, sources={}, tokenizer="", cache_dir=str(workdir / "data" / "corpus"))
    open_corpus(data, workdir / "data", progress=False, begun=workdir)
    with pytest.raises(UserError, match="not the one that the run began with"):
        other = dataclasses.replace(data, tokenizer=str(tmp_path / "other"))
        open_corpus(other, workdir / "data", progress=False, begun=workdir)


def test_a_new_run_takes_what_was_prepared_when_the_text_is_gone(begun, tmp_path, capsys):
    config, workdir = begun
    (tmp_path / "text.txt").unlink()
    corpus = open_corpus(config.data, workdir / "data", progress=False)
    assert corpus.digest() == reopened(begun).digest() and "the text is gone" in capsys.readouterr().err
    with pytest.raises(UserError, match="There is no data at"):
        open_corpus(dataclasses.replace(config.data, add_bos=True), workdir / "data", progress=False)


def test_the_digest_is_of_the_tokens_and_not_of_their_files(begun, tmp_path):
    config, workdir = begun
    shutil.copytree(workdir / "data", tmp_path / "moved")
    data = dataclasses.replace(config.data, sources={}, tokenizer="", cache_dir=str(tmp_path / "moved" / "corpus"))
    assert open_corpus(data, tmp_path).digest() == reopened(begun).digest()


class Counting:
    """An iterator that only knows its place."""

    def __init__(self):
        self.state = {"next_index": 0}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_a_position_in_other_data_is_refused_or_told(capsys):
    position = TextBatches(Counting(), "a").position()
    assert position == {"next_index": 0, "data": "a"}
    with pytest.raises(UserError, match=r"data\.on_change=use"):
        TextBatches(Counting(), "b").seek(position)
    for position, said in (
        ({"next_index": 3, "data": "a"}, 1),
        ({"next_index": 3}, 0),
        ({"next_index": 3, "data": "b"}, 0),
    ):
        batches = TextBatches(Counting(), "b", "use")
        batches.seek(position)
        assert batches.position() == {"next_index": 3, "data": "b"}
        assert capsys.readouterr().err.count("goes on with them as they are") == said


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["constant", "inverse_sqrt"]), st.integers(1, 400), st.integers(1, 10_000), st.floats(0, 1))
def test_another_budget_does_not_move_the_schedule_of_what_was_trained(tmp_path_factory, name, first, then, fraction):
    def config(steps):
        values = default_config(MODEL)
        values.schedule.name, values.schedule.warmup_fraction = name, fraction
        set_budget(values, steps=steps)
        return run_config(values)

    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text(json.dumps(config(first).to_dict()))
    longer = with_begun_warmup(config(max(first, then)), workdir)
    before, after = (make_schedule(c.laid_out_schedule, c.total_steps) for c in (config(first), longer))
    steps = np.arange(400)  # one shape, so that its operations are compiled once
    assert np.array_equal(before(steps)[:first], after(steps)[:first])
    assert longer.to_dict() == config(max(first, then)).to_dict()
