"""A fine-tune from the shell: conversations in, an adapter trained, the merged model out."""

import json

import jax
import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.peft.prefix_cache import prefix_length
from slmjax.quantization.weights import is_quantized
from slmjax.tokenization.tokenizer import train_bpe

MODEL = {"vocab_size": 300, "num_layers": 2, "embed_dim": 16, "num_heads": 2, "ffn_dim": 32, "context_length": 128}
CONFIG = f"""
from slmjax.data.sft_config import SftConfig
from slmjax.models.config import ModelConfig
from slmjax.training.config import default_config, set_budget

def get_config():
    config = default_config(ModelConfig(**{MODEL}), data=SftConfig)
    set_budget(config, steps=3)
    config.peft.method = "lora"
    config.peft.lora.r = 2
    config.data.sequence_length = 64
    config.data.chat_template = "plain"
    config.data.on_long = "truncate"
    config.data.validation_fraction = 0.2
    config.training.batch_size = 8
    config.schedule.peak = 0.05
    return config
"""


@pytest.fixture
def ready(tmp_path):
    """The arguments of a run: a base, records, a config."""
    config = ModelConfig(**MODEL)
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    tokenizer = train_bpe(["what is a cat? a small animal. "] * 8, 290, progress=False)
    slmjax.save(LanguageModel(config, params, tokenizer), tmp_path / "base")
    turns = [{"role": "user", "content": "what is a cat?"}, {"role": "assistant", "content": "a small animal."}]
    lines = [json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, *turns[1:]]}) for n in range(20)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    (tmp_path / "config.py").write_text(CONFIG)
    return [
        *("train", "--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")),
        f"--config.peft.base={tmp_path / 'base'}",
        f"--config.data.sources.chats.path={tmp_path / 'chats.jsonl'}",
    ]


def test_a_fine_tune_trains_loads_merged_and_speaks(ready, tmp_path, capsys):
    assert main(ready) == 0
    base, tuned = slmjax.load(tmp_path / "base"), slmjax.load(tmp_path / "run")
    kernel = ("segment_0", "block_0", "attention", "q_proj", "kernel")
    before, after = base.params, tuned.params
    for room in kernel:
        before, after = before[room], after[room]
    assert not np.allclose(before, after)  # merged
    np.testing.assert_array_equal(base.params["embedder"]["embedding"], tuned.params["embedder"]["embedding"])
    assert tuned.tokenizer.settings["chat_template"]  # it is talked to as it was taught
    capsys.readouterr()
    assert main(["generate", "--model", str(tmp_path / "run"), "--prompt", "what", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("what")
    adapter = str(tmp_path / "adapter")
    assert main(["convert", str(tmp_path / "run"), adapter, "--format", "peft"]) == 0
    again = slmjax.load(adapter)  # its config says where the base is
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), again.params, tuned.params)


def test_a_prefix_is_run_beside_its_base_and_not_saved_as_weights(ready, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*ready, "--config.peft.method=prefix", "--config.peft.prefix.num_tokens=4"]) == 0
    base, tuned = slmjax.load(tmp_path / "base"), slmjax.load(run)
    jax.tree.map(np.testing.assert_array_equal, base.params, tuned.params)
    assert prefix_length(tuned.peft) == 4
    tokens = np.arange(6)[None]
    assert not np.allclose(base.apply(base.params, tokens), tuned.apply(tuned.params, tokens), atol=1e-4)
    capsys.readouterr()
    assert main(["generate", "--model", str(run), "--prompt", "what", "--max-new-tokens", "3"]) == 0
    assert main(["convert", str(run), str(tmp_path / "weights"), "--format", "huggingface"]) == 2
    assert "has a prefix" in capsys.readouterr().err and not (tmp_path / "weights").exists()


def test_an_adapter_on_a_quantized_base_is_merged_or_kept_beside_it(ready, tmp_path):
    assert main([*ready, "--config.peft.quantize=int8"]) == 0
    merged, beside = slmjax.load(tmp_path / "run"), slmjax.load(tmp_path / "run", merge=False)
    assert is_quantized(beside.params) and beside.peft and not is_quantized(merged.params) and not merged.peft
    tokens = np.arange(6)[None]
    logits = [np.asarray(lm.apply(lm.params, tokens)) for lm in (merged, beside)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert slmjax.generate(merged, ["what"], max_new_tokens=4) == slmjax.generate(beside, ["what"], max_new_tokens=4)


def test_mistakes_get_a_sentence(ready, tmp_path, capsys):
    without_base = [argument for argument in ready if "peft.base" not in argument]
    assert main(without_base) == 2
    assert "peft.base" in capsys.readouterr().err
    assert main(["data", "prepare", "--config", str(tmp_path / "config.py"), "--output", str(tmp_path / "out")]) == 2
    assert "nothing to prepare" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
