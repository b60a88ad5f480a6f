"""The command line, end to end on a tiny run; a user's mistake is one sentence and status 2."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.inference.generate import generate_ids
from slmjax.inference.sampling import Sampling

CONFIG = """
from slmjax.models.config import ModelConfig
from slmjax.training.config import default_config, set_budget


def get_config():
    config = default_config(
        ModelConfig(vocab_size=300, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64,
                    context_length=256)
    )
    config.data.sources.text = {{"path": {text!r}}}
    config.data.tokenizer = "train:300"
    config.data.sequence_length = 32
    config.data.validation_fraction = 0.2
    config.training.batch_size = 8
    config.schedule.warmup_steps = 1
    set_budget(config, steps=4)
    return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "walk", "under", "the", "old", "a", "of", "and"]
    lines = [" ".join(rng.choice(words, 12)) + "." for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    (folder / "config.py").write_text(CONFIG.format(text=str(folder / "text.txt")))
    return folder


@pytest.fixture(scope="module")
def run(place):
    assert main(["train", "--config", str(place / "config.py"), "--workdir", str(place / "run"), "--json"]) == 0
    return place / "run"


def refused(capsys, *argv):
    """The one sentence that a refused command prints."""
    assert main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith("slmjax: error: ")]
    assert len(said) == 1 and "Traceback" not in err, err
    return said[0]


def test_a_run_leaves_what_it_promises(run):
    for name in ("config.json", "metrics.jsonl", "loss.png", "checkpoints/4", "tokenizer"):
        assert (run / name).exists(), name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "validation"} == {line["split"] for line in lines}
    assert lines[-1]["validation_bits_per_byte"] > 0


def test_generate_inspect_convert_evaluate(run, place, capsys):
    assert main(["generate", "--model", str(run), "--prompt", "the old", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the old")
    assert main(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] == 300
    assert main(["convert", str(run), str(place / "saved")]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--model", str(place / "saved"), "--text", str(place / "text.txt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["bits_per_byte"] < 8 and result["bytes"] == (place / "text.txt").stat().st_size


def test_a_saved_model_is_the_run_bit_for_bit(run, tmp_path):
    lm = slmjax.load(run)
    again = slmjax.load(slmjax.save(lm, tmp_path / "model"))
    tokens = np.arange(20)[None]
    np.testing.assert_array_equal(lm.apply(lm.params, tokens), again.apply(again.params, tokens))
    with pytest.raises(slmjax.UserError, match="not a saved slmjax model"):
        slmjax.save(lm, run)


def test_rows_of_a_batch_do_not_know_each_other(run):
    lm = slmjax.load(run)
    prompts = [[5, 6, 7], [9], list(range(40, 120))]
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=20, top_p=0.9)):
        together = generate_ids(lm, prompts, max_new_tokens=6, sampling=sampling, seed=3)
        assert together[0] == generate_ids(lm, prompts[:1], max_new_tokens=6, sampling=sampling, seed=3)[0]


def test_greedy_decoding_is_the_argmax_of_the_full_forward(run):
    lm = slmjax.load(run)
    tokens = [5, 6, 7, 8]
    for token in generate_ids(lm, [tokens], max_new_tokens=8)[0]:
        assert token == int(np.argmax(lm.apply(lm.params, np.asarray([tokens]))[0, -1]))
        tokens = [*tokens, token]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.training.batchsize=8", r"batchsize.*did you mean 'batch_size'"),
        ("--config.training.steps=abc", "whole number"),
        ("--config.model.num_heads=5", r"num_heads=5|num_kv_heads"),
        ("--config.mesh.tensor=3", "mesh.tensor=3"),
        ("--config.model.vocab_size=100", "vocabulary"),
        ("--config.data.sources.text.path=/no/such/file.txt", "/no/such/file.txt"),
        ("--config.training.batch_size=100000", r"smaller than one batch"),
        ("--config.optimizer.name=adam", "adamw"),
    ],
)
def test_bad_configs(place, tmp_path, capsys, override, said):
    sentence = refused(capsys, "train", "--config", place / "config.py", "--workdir", tmp_path / "x", override)
    assert re.search(said, sentence), sentence


def test_another_runs_workdir_is_refused_with_the_keys(run, place, capsys):
    sentence = refused(capsys, "train", "--config", place / "config.py", "--workdir", run, "--config.schedule.peak=0.5")
    assert "schedule.peak (0.003 -> 0.5)" in sentence


def test_a_run_whose_checkpoints_are_all_damaged(run, place, tmp_path, capsys):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    sentence = refused(capsys, "train", "--config", place / "config.py", "--workdir", tmp_path / "run")
    assert "can be read" in sentence


def test_other_mistakes(run, place, tmp_path, capsys):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\x00" * 1000)
    for source in (empty, binary):
        train = ("train", "--config", place / "config.py", "--workdir", tmp_path / "y")
        assert str(source) in refused(capsys, *train, f"--config.data.sources.text.path={source}")
    assert "no model at" in refused(capsys, "generate", "--model", tmp_path / "none", "--prompt", "x")
    assert "context" in refused(capsys, "generate", "--model", run, "--prompt", "x", "--max-new-tokens", "9999")
    assert "did you mean" in refused(capsys, "inspect", "smollm2-135")
    assert "--wrong" in refused(capsys, "inspect", "smollm2-135m", "--wrong")


def test_the_command_in_a_shell():
    done = subprocess.run([sys.executable, "-m", "slmjax.cli.main", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'train'" in done.stderr
    done = subprocess.run([sys.executable, "-c", "import slmjax, sys; sys.exit('jax' in sys.modules)"])
    assert done.returncode == 0  # importing slmjax does not import jax
