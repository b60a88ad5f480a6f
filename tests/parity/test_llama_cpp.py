"""llama.cpp itself reads what we write, and we what it writes: the same logits, the same tokens."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import slmjax
from slmjax.formats.gguf.model import load_gguf, save_gguf
from slmjax.inference.language_model import LanguageModel
from slmjax.models.transformer import Transformer
from tests.formats import test_gguf_models as mini

if importlib.util.find_spec("llama_cpp") is None:
    pytest.skip("llama.cpp is compiled for minutes: pip install slmjax[llama-cpp]", allow_module_level=True)

SIDE = Path(__file__).with_name("llama_cpp_side.py")
TOKENS = np.random.default_rng(0).integers(3, 270, 24).tolist()


def llama_cpp(*arguments) -> str:
    command = [sys.executable, str(SIDE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def their_logits(path, tokens) -> np.ndarray:
    llama_cpp("logits", path, json.dumps(tokens), path.with_suffix(".npy"))
    return np.load(path.with_suffix(".npy"))


def our_logits(config, params, tokens) -> np.ndarray:
    return np.asarray(jax.jit(Transformer(config).apply)({"params": params}, np.asarray([tokens])))[0]


@pytest.mark.filterwarnings("ignore:llama.cpp ignores")
@pytest.mark.parametrize("name", mini.MINIATURES)
def test_every_architecture_has_our_logits_in_llama_cpp(name, tmp_path, record_property):
    config, params = mini.miniature(name)
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=mini.small_tokenizer()),
        tmp_path / "model.gguf",
        dtype="float32",
    )
    theirs = their_logits(path, TOKENS)
    if name == "mistral":  # under this architecture llama.cpp knows no windows, of which saving warns
        config = dataclasses.replace(config, window=None, layer_pattern=("global",))
    if name == "exaone4, windows":  # nor here, but of networks of 64 layers, and then all layers rotate
        config = dataclasses.replace(config, window=None, layer_pattern=("global",), rope_pattern=(True,))
    ours = our_logits(config, params, TOKENS)
    # Its GELU is a table in half precision.
    atol = (1e-3 if config.activation.startswith("gelu") else 1e-5) * max(1.0, np.abs(ours).max())
    np.testing.assert_allclose(theirs, ours, atol=atol, rtol=0)
    record_property("largest_difference", (name, float(np.abs(theirs - ours).max())))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "BF16", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_what_llama_cpp_quantizes_is_read(kind, tmp_path):
    """It rounds activations too where weights are quantized, so its logits are near ours and no nearer."""
    config = dataclasses.replace(mini.miniature("llama")[0], embed_dim=256, ffn_dim=256, head_dim=64)
    params = mini.random_params(config)
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=mini.small_tokenizer()),
        tmp_path / "model.gguf",
        dtype="float32",
    )
    quantized = tmp_path / f"{kind}.gguf"
    llama_cpp("quantize", path, quantized, kind)
    read = load_gguf(quantized).params
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), read, params)
    assert max(jax.tree.leaves(changed)) > 0  # something was quantized
    ours, theirs, exact = our_logits(config, read, TOKENS), their_logits(quantized, TOKENS), their_logits(path, TOKENS)
    error = np.sqrt(np.mean((ours - theirs) ** 2))
    assert error < 0.02 * np.sqrt(np.mean(exact**2)), (error, np.sqrt(np.mean((exact - theirs) ** 2)))


@pytest.mark.slow
def test_the_real_model_through_a_file_of_ours(assets, tmp_path):
    source = assets / "models" / "smollm2-135m-instruct"
    if not source.is_dir():
        pytest.skip(f"the real model is not at hand: {source}")
    lm = slmjax.load(next(source.glob("*.gguf")))
    path = save_gguf(lm, tmp_path / "model.gguf", dtype="float32")
    text = "The Amazon, 6,400 km, isn't the longest river — but naïve maps (日本) say so!\n\n\tfor i in x:  <|im_end|>"
    ids = lm.tokenizer.encode(text)
    assert json.loads(llama_cpp("tokenize", path, json.dumps([text])))[0] == ids
    np.testing.assert_allclose(their_logits(path, ids), our_logits(lm.config, lm.params, ids), atol=2e-3, rtol=0)
