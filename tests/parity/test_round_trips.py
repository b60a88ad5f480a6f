"""transformers reads a directory that was converted, and converted by way of GGUF, as it reads the original."""

import dataclasses

import numpy as np
import pytest

import slmjax
from tests.formats.test_round_trips import QUICK, TEXTS, vocabulary, write_directory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
assert vocabulary  # the fixture


@pytest.mark.slow
@pytest.mark.parametrize("by_way_of", ["slmjax", "gguf"])
@pytest.mark.parametrize("model_type", QUICK)
def test_transformers_sees_no_difference(model_type, by_way_of, vocabulary, tmp_path):
    write_directory(tmp_path / "theirs", model_type, vocabulary)
    lm = slmjax.load(tmp_path / "theirs")
    slmjax.save(lm, tmp_path / "between.gguf" if by_way_of == "gguf" else tmp_path / "between", dtype="float32")
    between = slmjax.load(tmp_path / ("between.gguf" if by_way_of == "gguf" else "between"))
    slmjax.save(dataclasses.replace(between, config=lm.config), tmp_path / "again", format="huggingface")
    sides = [tmp_path / "theirs", tmp_path / "again"]
    tokenizers = [transformers.AutoTokenizer.from_pretrained(side) for side in sides]
    for text in TEXTS:
        ids = [tokenizer(text)["input_ids"] for tokenizer in tokenizers]
        assert ids[0] == ids[1]
        texts = [
            tokenizer.decode(ids[0], skip_special_tokens=skip) for tokenizer in tokenizers for skip in (False, True)
        ]
        assert texts[:2] == texts[2:]
    assert tokenizers[0].special_tokens_map == tokenizers[1].special_tokens_map
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    settings = [transformers.GenerationConfig.from_pretrained(side).to_dict() for side in sides]
    assert settings[0] == settings[1]
    models = [transformers.AutoModelForCausalLM.from_pretrained(side).eval() for side in sides]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(models[0].config, key) == getattr(models[1].config, key)
    tokens = torch.arange(1, 20)[None]
    with torch.no_grad():
        logits = [model(tokens).logits.numpy() for model in models]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4 * max(1.0, np.abs(logits[0]).max()))
