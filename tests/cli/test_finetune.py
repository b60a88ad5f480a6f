"""A fine-tune from the shell: conversations in, an adapter trained, the merged model out."""

import json

import jax
import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.peft.prefix_cache import prefix_length
from slmjax.quantization.weights import is_quantized


def test_a_fine_tune_trains_loads_merged_and_speaks(finished, tmp_path, capsys):
    base, tuned = slmjax.load(finished / "base"), slmjax.load(finished / "run")
    kernel = ("segment_0", "block_0", "attention", "q_proj", "kernel")
    before, after = base.params, tuned.params
    for room in kernel:
        before, after = before[room], after[room]
    assert not np.allclose(before, after)  # merged
    np.testing.assert_array_equal(base.params["embedder"]["embedding"], tuned.params["embedder"]["embedding"])
    assert tuned.tokenizer.settings["chat_template"]  # it is talked to as it was taught
    capsys.readouterr()
    assert main(["generate", "--model", str(finished / "run"), "--prompt", "what", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("what")
    adapter = str(tmp_path / "adapter")
    assert main(["convert", str(finished / "run"), adapter, "--format", "peft"]) == 0
    again = slmjax.load(adapter)  # its config says where the base is
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), again.params, tuned.params)


@pytest.mark.slow
def test_a_prefix_is_run_beside_its_base_and_not_saved_as_weights(ready, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*ready, "--config.peft.method=prefix", "--config.peft.prefix.num_virtual_tokens=4"]) == 0
    base, tuned = slmjax.load(tmp_path / "base"), slmjax.load(run)
    jax.tree.map(np.testing.assert_array_equal, base.params, tuned.params)
    assert prefix_length(tuned.peft) == 4
    tokens = np.arange(6)[None]
    assert not np.allclose(*(jax.jit(lm.apply)(lm.params, tokens) for lm in (base, tuned)), atol=1e-4)
    capsys.readouterr()
    assert main(["generate", "--model", str(run), "--prompt", "what", "--max-new-tokens", "3"]) == 0
    assert main(["convert", str(run), str(tmp_path / "weights"), "--format", "huggingface"]) == 2
    assert "has a prefix" in capsys.readouterr().err and not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_an_adapter_on_a_quantized_base_is_merged_or_kept_beside_it(ready, tmp_path):
    assert main([*ready, "--config.peft.quantize=int8"]) == 0
    merged, beside = slmjax.load(tmp_path / "run"), slmjax.load(tmp_path / "run", merge=False)
    assert is_quantized(beside.params) and beside.peft and not is_quantized(merged.params) and not merged.peft
    tokens = np.arange(6)[None]
    logits = [np.asarray(jax.jit(lm.apply)(lm.params, tokens)) for lm in (merged, beside)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert slmjax.generate(merged, ["what"], max_new_tokens=4) == slmjax.generate(beside, ["what"], max_new_tokens=4)


@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
def test_what_was_tuned_ends_its_answers_where_its_base_does(method, request, tmp_path):
    if method == "lora":
        run = request.getfixturevalue("finished") / "run"
    else:
        ready, run = request.getfixturevalue("ready"), tmp_path / "run"
        assert main([*ready, f"--config.peft.method={method}", "--config.peft.freeze.last_layers=1"]) == 0
    tuned = slmjax.load(run)
    assert tuned.stop_ids == (7, 9) and "stop_ids" not in tuned.tokenizer.settings


def test_mistakes_get_a_sentence(ready, tmp_path, capsys):
    without_base = [argument for argument in ready if "peft.base" not in argument]
    assert main(without_base) == 2
    assert "peft.base" in capsys.readouterr().err
    assert main(["data", "prepare", "--config", str(tmp_path / "config.py"), "--output", str(tmp_path / "out")]) == 2
    assert "nothing to prepare" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_inspect_counts_what_is_trained(finished, capsys):
    config = str(finished / "config.py")
    assert main(["inspect", config, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(finished / "run"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    L, D, F, r = 2, 16, 32, 2
    # q and o, k and v, gate and up, down: each A [in, r] and B [r, out]
    lora = L * r * (2 * (D + D) + 2 * (D + D) + 2 * (D + F) + (F + D))
    assert facts["trained_parameters"] == planned["trained_parameters"] == lora
    assert facts["trained_and_frozen_parameters"] == facts["parameters"] + lora
    assert (facts["method"], facts["base"]) == ("lora", str(finished / "base"))


RECORDS = {
    "an empty completion": ({"prompt": "what is a cat?", "completion": " "}, "completion is empty"),
    "an unknown role": ({"messages": [{"role": "robot", "content": "beep"}]}, "unknown role 'robot'"),
    "no turn of the assistant": ({"messages": [{"role": "user", "content": "what?"}]}, "assistant"),
    "longer than the context": ({"prompt": "what", "completion": " cat" * 200}, "more than the 65"),
}


@pytest.mark.parametrize("mistake", RECORDS)
def test_a_record_that_cannot_be_learned_is_one_sentence(mistake, ready, tmp_path, capsys):
    record, words = RECORDS[mistake]
    (tmp_path / "chats.jsonl").write_text(json.dumps(record) + "\n")
    assert main([*ready, "--config.data.on_long=error"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("slmjax: error:") and words in said and "chats.jsonl" in said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("peft.lora.r=0", "a rank of 0"),
        ("data.sequence_length=512", "context"),
        ("peft.expand=2", "peft.method=freeze"),
        ("forgetting.corpus=nowhere.txt", "nowhere.txt"),
        ("training.early_stopping=-1", "training.early_stopping"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(key, words, ready, tmp_path, capsys):
    assert main([*ready, f"--config.{key}"]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_samples_are_prompts_up_to_the_assistants_turn(ready, tmp_path):
    assert main([*ready, "--config.training.samples=2", "--config.training.sample_tokens=5"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {0, 3} and len(lines) == 4
    assert all(line["prompt"].rstrip().endswith("Assistant:") for line in lines)
    assert not any("a small animal" in line["prompt"] for line in lines)
