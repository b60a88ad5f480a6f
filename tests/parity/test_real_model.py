"""The real SmolLM2-135M-Instruct as a Hugging Face directory: its reference logits, and back into transformers."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch (pip install slmjax[parity])")
transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install slmjax[parity])")
pytest.importorskip("gguf", reason="transformers reads GGUF with gguf (pip install slmjax[parity])")

import slmjax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(assets):
    folder = assets / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip(f"the real model is not at hand: {folder}")
    return folder


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """The model as transformers writes it, in float32."""
    directory = tmp_path_factory.mktemp("real") / "theirs"
    file = next(source.glob("*.gguf")).name
    read = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # What it read of a quantized file transformers saves only as a model of its own.
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(source))
    model.float().load_state_dict(read.state_dict())
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    return directory


def test_the_reference_logits(source, exported):
    lm = slmjax.load(exported)
    reference = np.load(source / "reference_logits.npz")
    run = jax.jit(lm.apply)
    for n in range(5):
        ids = reference[f"ids{n}"]
        padded = np.pad(ids, (0, 16 - len(ids)))[None]  # one length, one program
        np.testing.assert_allclose(
            run(lm.params, padded)[0, len(ids) - 1], reference[f"last_logits{n}"], atol=1e-3, rtol=0
        )
    assert lm.stop_ids and lm.tokenizer.settings["add_bos_token"] is False


def test_back_into_transformers(exported, tmp_path):
    ours = slmjax.save(slmjax.load(exported), tmp_path / "ours", format="huggingface")
    a, b = (transformers.AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32) for d in (exported, ours))
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    tokenizers = [transformers.AutoTokenizer.from_pretrained(d) for d in (exported, ours)]
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    texts = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in tokenizers]
    assert texts[0] == texts[1]
    ids = [t(texts[0] + " über 日本 \n\n x = 1234")["input_ids"] for t in tokenizers]
    assert ids[0] == ids[1] and tokenizers[0].decode(ids[0]) == tokenizers[1].decode(ids[1])
    assert json.loads((ours / "config.json").read_text())["rope_theta"] == a.config.rope_parameters["rope_theta"]
