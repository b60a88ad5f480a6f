"""The command line, end to end on a tiny run; a user's mistake is one sentence and status 2."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.inference.chat import Conversation
from slmjax.recipes import language_model
from slmjax.recipes.config import run_config
from slmjax.tokenization.tokenizer import load_tokenizer
from slmjax.training import loop, memory
from slmjax.training.checkpoints.checkpointer import Checkpointer

CONFIG = """
from slmjax.models.config import ModelConfig
from slmjax.recipes.config import default_config, set_budget


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


def printed(capsys, *argv):
    """What a command that succeeds prints on stdout."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def test_generate_streams_one_prompt_and_lists_several(run, capsys):
    options = ("--model", run, "--max-new-tokens", 5)
    streamed = printed(capsys, "generate", *options, "--prompt", "the old")
    both = printed(capsys, "generate", *options, "--prompt", "the old", "--prompt", "", "--json")
    first, second = map(json.loads, both.splitlines())
    assert streamed == first["prompt"] + first["text"] + "\n"
    assert second["prompt"] == ""


def test_generate_ends_at_a_text_and_takes_every_setting(run, capsys):
    options = ("generate", "--model", run, "--max-new-tokens", 5, "--prompt", "the old", "--json")
    whole = json.loads(printed(capsys, *options))["text"]
    assert json.loads(printed(capsys, *options, "--stop", whole[1:3]))["text"] == whole[: whole.index(whole[1:3])]
    settings = ("--temperature", 1, "--top-k", 9, "--top-p", 0.9, "--min-p", 0.01, "--repetition-penalty", 1.2)
    assert printed(capsys, *options, *settings, "--seed", 3) == printed(capsys, *options, *settings, "--seed", 3)
    assert "min_p" in refused(capsys, *options, "--min-p", 2)


def test_chat_answers_lines_and_forgets_when_told(run, tmp_path, capsys, monkeypatch):
    assert "no chat template" in refused(capsys, "chat", "--model", run)
    model = slmjax.save(slmjax.load(run), tmp_path / "talker")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    monkeypatch.setattr("sys.stdin", io.StringIO("the old\n\nriver\n/reset\nthe old\n/exit\nnever\n"))
    answers: list[str] = []
    answer = Conversation.answer
    monkeypatch.setattr(Conversation, "answer", lambda *args: answers.append(answer(*args)) or answers[-1])
    options = ("--max-new-tokens", 4, "--context", 120, "--system", "be brief", "--temperature", 2)
    assert printed(capsys, "chat", "--model", model, *options) == "".join(f"{text}\n" for text in answers)
    first, second, again = answers
    assert first == again != second  # the draws of a turn follow from the seed and its place in the conversation


def test_inspect_says_what_it_is(run, tmp_path, capsys):
    slmjax.save(slmjax.load(run), tmp_path / "saved", dtype="bfloat16")
    facts = {
        path: json.loads(printed(capsys, "inspect", path, "--json"))
        for path in (run, run / "checkpoints" / "4", tmp_path / "saved", "gpt2")
    }
    assert [f["kind"] for f in facts.values()] == ["run", "checkpoint", "saved model", "named model"]
    assert [f.get("dtype") for f in facts.values()] == ["float32", "float32", "bfloat16", None]
    assert facts[run]["step"] == facts[run]["total_steps"] == 4 and facts["gpt2"]["parameters"] == 124_439_808
    table = printed(capsys, "inspect", run).splitlines()
    assert len({len(line) for line in table}) == 1  # it lines up


def test_inspect_counts_the_cache_of_a_batch(capsys):
    small, large = (
        json.loads(printed(capsys, "inspect", "gpt2", "--json", "--context", 128, "--batch-size", b)) for b in (1, 3)
    )
    assert large["cache_bytes_bfloat16"] == 3 * small["cache_bytes_bfloat16"] == 3 * 2 * 12 * 768 * 128 * 2


def test_convert_and_evaluate(run, place, tmp_path, capsys):
    assert printed(capsys, "convert", run, tmp_path / "saved").strip() == str((tmp_path / "saved").resolve())
    text, output = place / "text.txt", tmp_path / "result.json"
    shown = printed(
        capsys, "evaluate", "--model", tmp_path / "saved", "--text", text, "--baseline-text", text, "--output", output,
        "--json",
    )  # fmt: skip
    result = json.loads(shown)
    assert result == json.loads(output.read_text())
    assert result["bytes"] == text.stat().st_size
    for name in ("bits_per_byte", "gzip_bits_per_byte", "unigram_bits_per_byte", "ngram_bits_per_byte"):
        assert 0 < result[name] < 8


def test_every_kind_of_path_loads_the_same_model(run, tmp_path):
    lm = slmjax.load(run)
    tokens = np.arange(20)[None]
    apply = jax.jit(lm.apply)
    for path in (run / "checkpoints" / "4", slmjax.save(lm, tmp_path / "model")):
        again = slmjax.load(path)
        assert again.config == lm.config
        np.testing.assert_array_equal(apply(lm.params, tokens), apply(again.params, tokens))
    with pytest.raises(slmjax.UserError, match="not a saved model alone"):
        slmjax.save(lm, run)


@pytest.mark.slow
def test_a_run_with_an_average_loads_the_average(place, tmp_path):
    options = ("--config.training.ema_decay=0.5", "--config.data.add_bos=True", "--config.data.cache_dir=")
    workdir = tmp_path / "ema"
    assert main(["train", "--config", str(place / "config.py"), "--workdir", str(workdir), *options]) == 0
    lm = slmjax.load(workdir)
    assert lm.tokenizer.settings["add_bos_token"] is True
    described = json.loads((workdir / "slmjax.json").read_text())
    (workdir / "slmjax.json").write_text(json.dumps(described | {"averaged": False}))
    plain = slmjax.load(workdir)
    assert not np.array_equal(lm.params["embedder"]["embedding"], plain.params["embedder"]["embedding"])


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(place, tmp_path, capsys):
    workdir = tmp_path / "two"
    argv = ["train", "--config", str(place / "config.py"), "--workdir", str(workdir), "--config.checkpoint.every=2"]
    assert main(argv) == 0
    expected = slmjax.load(workdir / "checkpoints" / "2").params["embedder"]["embedding"]
    damage(workdir / "checkpoints" / "4")
    np.testing.assert_array_equal(slmjax.load(workdir).params["embedder"]["embedding"], expected)
    assert "damaged" in capsys.readouterr().err
    assert "damaged" in refused(capsys, "generate", "--model", workdir / "checkpoints" / "4", "--prompt", "x")


def test_a_tokenizer_is_trained_a_corpus_prepared_and_both_described(place, tmp_path, capsys):
    text = place / "text.txt"
    printed(capsys, "tokenizer", "train", "--source", text, "--vocab-size", 280, "--output", tmp_path / "tok")
    facts = json.loads(printed(capsys, "tokenizer", "inspect", tmp_path / "tok", "--text", "the old", "--json"))
    assert facts["tokens"] == 280 and load_tokenizer(tmp_path / "tok").decode(facts["ids"]) == "the old"
    assert "'" in printed(capsys, "tokenizer", "inspect", tmp_path / "tok", "--text", "the old")
    assert "new or empty" in refused(
        capsys, "tokenizer", "train", "--source", text, "--vocab-size", 280, "--output", tmp_path / "tok"
    )
    (tmp_path / "same name").mkdir()
    shutil.copy(text, tmp_path / "same name" / "text.txt")
    sources = ("--source", text, "--source", tmp_path / "same name" / "text.txt", "--format", "text")
    corpus = printed(capsys, "data", "prepare", *sources, "--tokenizer", tmp_path / "tok", "--output", tmp_path / "d")
    described = json.loads(printed(capsys, "data", "inspect", corpus.strip(), "--json"))
    assert sum(store["bytes"] for split in described.values() for store in split.values()) == pytest.approx(
        2 * text.stat().st_size, rel=0.01
    )
    assert "tokens a document" in printed(capsys, "data", "inspect", corpus.strip())
    assert "either --config" in refused(capsys, "data", "prepare", "--output", tmp_path / "e")


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


def damage(folder):
    """Cut every file of some size in half."""
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_run_whose_checkpoints_are_all_damaged(run, place, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints")
    sentence = refused(capsys, "train", "--config", place / "config.py", "--workdir", tmp_path / "run")
    assert "can be read" in sentence
    assert "can be read" in refused(capsys, "generate", "--model", tmp_path / "run", "--prompt", "x")


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


def test_distributed_options_belong_together(place, tmp_path, capsys):
    train = ("train", "--config", place / "config.py", "--workdir", tmp_path / "z")
    assert "need --distributed" in refused(capsys, *train, "--num-processes", 2)
    assert "all or not at all" in refused(capsys, *train, "--distributed", "--num-processes", 2)
    everything = ("--coordinator", "localhost:1", "--num-processes", 2, "--process-id", 2)
    assert "0 to 1" in refused(capsys, *train, "--distributed", *everything)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_and_goes_on(place, tmp_path, number, status):
    """What is saved is the step that the message names, with the position of its data."""
    workdir = tmp_path / "run"
    metrics = workdir / "metrics.jsonl"
    argv = [sys.executable, "-m", "slmjax.cli.main", "train", "--config", str(place / "config.py")]
    argv += ["--workdir", str(workdir), "--config.training.steps=100000", "--config.mesh.data=1"]
    argv += ["--config.training.log_every=1"]
    env = {**os.environ, "XLA_FLAGS": ""}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if (metrics.is_file() and metrics.read_text().count("\n") > 1) or process.poll() is not None:
                break
            time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == status and "Traceback" not in err
    said = re.search(rf"{number.name}: saved step (\d+) of 100000 in (\S+);", err)
    assert said and said[2] == str(workdir)
    config = run_config(json.loads((workdir / "config.json").read_text()))
    stored = language_model.build(config, devices=jax.devices()[:1]).program.stored
    restored = Checkpointer(workdir / loop.CHECKPOINTS).restore_latest(stored)
    assert restored.step == int(said[1]) == int(restored.state.step) > 1
    assert restored.position["batches"]["next_index"] == restored.step
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] <= restored.step
    assert slmjax.load(workdir).config.num_layers == 2


def test_the_command_in_a_shell(tmp_path):
    argv = [sys.executable, "-m", "slmjax.cli.main", "generate", "--model", str(tmp_path / "none"), "--prompt", "x"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"slmjax: error: There is no model at {tmp_path / 'none'}.\n"


def test_a_mistake_is_corrected_in_the_same_workdir(place, tmp_path, capsys, monkeypatch):
    train = ("train", "--config", str(place / "config.py"), "--workdir", str(tmp_path / "run"))
    assert "/no/such" in refused(capsys, *train, "--config.data.sources.text.path=/no/such/file.txt")
    assert "smaller than one batch" in refused(capsys, *train, "--config.training.batch_size=100000")
    with monkeypatch.context() as patched:
        patched.setattr(memory, "host_memory_bytes", lambda: 1000)
        assert "Out of memory on cpu" in refused(capsys, *train)
    assert not (tmp_path / "run" / "config.json").exists()
    assert main([*train, "--config.training.steps=1"]) == 0
