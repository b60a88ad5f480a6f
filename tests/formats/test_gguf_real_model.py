"""The real model, SmolLM2-135M-Instruct in Q4_1, against what transformers computed from it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.formats.gguf.architectures import ROUNDING
from slmjax.formats.gguf.ends import stop_ids_from
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.model import load_gguf, read_config, save_gguf
from slmjax.formats.gguf.tokenizer import tokenizer_from
from slmjax.inference.language_model import LanguageModel
from slmjax.models.families.registry import model_config
from slmjax.models.transformer import Transformer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder(assets) -> Path:
    return assets / "models/smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model(folder):
    lm = load_gguf(folder / NAME)
    config, params, tokenizer = lm.config, lm.params, lm.tokenizer
    apply = jax.jit(lambda params, tokens: Transformer(config).apply({"params": params}, tokens))

    def logits(ids) -> np.ndarray:  # [T, V]; padded to one length, so that there is one compilation
        return np.asarray(apply(params, jnp.pad(jnp.asarray(ids, jnp.int32), (0, 64 - len(ids)))[None])[0, : len(ids)])

    return logits, config, params, tokenizer


def test_its_config_is_that_of_the_family(folder):
    read = read_config(open_gguf(folder / NAME))
    assert read.differences(model_config("smollm2-135m"), ignore=ROUNDING, rel_tol=1e-6) == {}


def test_it_ends_where_its_turns_and_texts_end(folder):
    metadata = open_gguf(folder / NAME).metadata
    tokenizer = tokenizer_from(metadata, NAME)
    names = {tokenizer.id_to_token(id) for id in stop_ids_from(metadata, tokenizer, tokenizer.vocab_size, NAME)}
    assert names == {"<|im_end|>", "<|endoftext|>", "<reponame>"}  # the last ends an infill, as llama.cpp has it
    other = metadata | {"tokenizer.ggml.eot_token_id": 17}
    assert 17 in stop_ids_from(other, tokenizer, tokenizer.vocab_size, NAME)


@pytest.mark.slow
def test_logits_are_those_of_transformers(folder, model):
    logits, *_ = model
    reference = np.load(folder / "reference_logits.npz")
    for i in range(5):
        last = logits(reference[f"ids{i}"])[-1]
        np.testing.assert_allclose(last, reference[f"last_logits{i}"], atol=1e-3)


@pytest.mark.slow
def test_greedy_ids_are_those_of_transformers(folder, model):
    logits, _, _, tokenizer = model
    for case in json.loads((folder / "reference_outputs.json").read_text())["greedy"][:2]:
        expected, start = case["output_ids"], len(case["prompt_ids"])
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        # Each id is the likeliest after those before it: one pass shows all the steps of a greedy continuation.
        likeliest = logits(expected).argmax(axis=-1)
        assert likeliest[start - 1 : -1].tolist() == expected[start:]
        assert tokenizer.decode(expected, keep_special=True) == case["text"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_it_survives_being_written(model, dtype, tmp_path):
    _, config, params, tokenizer = model
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=tokenizer), tmp_path / "again.gguf", dtype=dtype
    )
    again = load_gguf(path)
    config2, params2, tokenizer2 = again.config, again.params, again.tokenizer
    assert config2 == config
    assert tokenizer2.fingerprint == tokenizer.fingerprint
    worst = max(
        jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), params2, params))
    )
    assert worst <= (0.0 if dtype == "float32" else 0.5 / 127 + 1e-3)


LOAD = """
import resource, sys, time
import jax
jax.devices()
from slmjax.formats.gguf.model import load_gguf
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.process_time()
params = jax.block_until_ready(load_gguf(sys.argv[1]).params)
print(time.process_time() - start, (peak() - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
def test_loading_is_quick_and_takes_little_memory(folder):
    """At most 5 seconds of the processor, and 1.3 times the bytes of the float32 parameters, in a fresh process."""
    out = subprocess.run([sys.executable, "-c", LOAD, folder / NAME], capture_output=True, text=True, check=True).stdout
    seconds, memory = map(float, out.split())
    assert seconds <= 5
    assert memory <= 1.3
