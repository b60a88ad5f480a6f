"""A budget in epochs: the steps that read every source through so many times."""

import dataclasses
import json

import numpy as np
import pytest

from slmjax.data.mixture import interleaved_rows
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.pretraining import settle
from slmjax.recipes.train import make_recipe, train
from slmjax.training.program import to_devices


@pytest.mark.parametrize("epochs", [1, 2.5])
def test_the_steps_read_every_source_through_and_no_more(epochs, tiny_config, tmp_path):
    texts = {}
    for name, sentences, weight in (("small", 40, 1.0), ("large", 200, 2.0)):
        rng = np.random.default_rng(sentences)
        texts[name] = {"path": str(tmp_path / f"{name}.txt"), "weight": weight}
        words = ["river", "stone", "light", "walk", "under", "the"]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(" ".join(rng.choice(words, 12)) for _ in range(sentences)))
    config = tiny_config(0, epochs=epochs)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=texts, cache_dir=""))
    recipe = make_recipe(config, tmp_path / "run")
    corpus = open_corpus(config.data, tmp_path / "run" / "data")
    steps, rows = recipe.budget.total_steps, config.training.batch_size
    passes = corpus.passes(config.data, steps * rows)
    assert set(passes) == {"small", "large"} and min(passes.values()) >= epochs
    assert min(corpus.passes(config.data, (steps - 1) * rows).values()) < epochs
    for name, count in passes.items():
        assert f"{name} {count:.2f}" in recipe.description
    assert f"{steps:,} steps" in recipe.description


def test_one_epoch_reads_every_row_of_the_text(tiny_config, tmp_path):
    config = tiny_config(0, epochs=1)
    recipe = make_recipe(config, tmp_path / "run")
    corpus = open_corpus(config.data, tmp_path)
    rows, B = corpus.rows_per_epoch(config.data), config.training.batch_size
    assert recipe.budget.total_steps == -(-rows // B) > 1
    field = recipe.program.kinds["train"].batch
    read = set()
    for _ in range(recipe.budget.total_steps):
        kind, batch = recipe.batches.next(recipe.program.state)
        assert kind == "train"
        read |= {row.tobytes() for row in np.asarray(to_devices(batch, field)["inputs"])}
    another = corpus.batches(config, list(range(B)))
    ten_epochs = {row.tobytes() for _ in range(10 * recipe.budget.total_steps) for row in next(another)["inputs"]}
    # The last batch may begin the next epoch, whose rows are cut as the first one's or not: all else is there once.
    assert rows <= len(read) <= recipe.budget.total_steps * B
    assert len(ten_epochs) >= len(read)


def test_replayed_rows_come_on_top_of_an_epoch(tiny_config, tmp_path):
    config = tiny_config(0, epochs=1)
    corpus = open_corpus(config.data, tmp_path)
    held = dataclasses.replace(config, forgetting=ForgettingConfig(replay=0.25, corpus="general.txt"))
    alone, replayed = (settle(one, corpus).total_steps * config.training.batch_size for one in (config, held))
    assert replayed > alone
    own = replayed - interleaved_rows(replayed, 0.25)
    assert corpus.passes(config.data, replayed, 0.25) == corpus.passes(config.data, own)
    assert min(corpus.passes(config.data, own).values()) >= 1


@pytest.mark.slow
def test_a_run_of_epochs_goes_on_and_knows_its_budget(tiny_config, tmp_path):
    config = tiny_config(0, epochs=0.1)
    first = train(config, tmp_path / "run")
    assert first.step == first.total_steps > 1
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["training"]["epochs"], stored["training"]["steps"]) == (0.1, 0)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=0.2))
    assert train(config, tmp_path / "run").step == first.step
    with pytest.raises(Exception, match=r"training\.epochs \(0\.1 -> 0\.2\)"):  # a cosine depends on its end
        train(longer, tmp_path / "run")
