"""`python -m slmjax.lm_eval`: the harness's own command line over a saved model and a task of the user's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install slmjax[eval])")

import slmjax
from slmjax.cli import lm_eval
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import abstract_params
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny import noise

TASK = """\
task: weather
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{sky}}}}"
doc_to_choice: ["rain", "sun"]
doc_to_target: weather
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model and a task."""
    directory = tmp_path_factory.mktemp("weather")
    tokenizer = train_bpe(["clouds and rain, a clear sky and sun"] * 4, 270, progress=False)
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "ffn_dim": 16, "context_length": 64}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)
    lm = LanguageModel(config=config, params=noise(abstract_params(config)), tokenizer=tokenizer)
    slmjax.save(lm, directory / "model")
    data = directory / "weather.jsonl"
    data.write_text("".join(json.dumps({"sky": sky, "weather": n}) + "\n" for n, sky in enumerate(["clouds", "clear"])))
    (directory / "weather.yaml").write_text(TASK.format(data=data))
    return directory


@pytest.mark.slow
def test_the_harness_command_line_evaluates_a_model_and_refuses_what_is_not_one(place, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
        return lm_eval.main()

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(place / "hub"))
    options = ["--tasks", str(place / "weather.yaml"), "--output_path", str(place / "out"), "--model", "slmjax"]
    assert run(*options, "--model_args", f"path={place / 'model'},max_length=32") == 0
    (file,) = (place / "out").rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["results"]["weather"]["acc,none"] in (0, 0.5, 1) and results["max_length"] == 32
    assert results["config"]["model"] == "slmjax" and len(results["config"]["model_fingerprint"]) == 16
    assert "weather" in capsys.readouterr().out
    assert run(*options, "--model_args", f"path={place / 'nowhere'}") == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slmjax: error: ")]
    assert "nowhere" in sentence


def test_the_module_is_a_program():
    """Its help is the harness's, and importing it does nothing."""
    run = subprocess.run([sys.executable, "-m", "slmjax.lm_eval", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "run" in run.stdout and "lm-eval" in run.stdout
    assert Path(slmjax.__file__).with_name("lm_eval.py").is_file()
