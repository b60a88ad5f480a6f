"""Greedy generation of families with transformers' tokens, its config from our export, and InternLM2 as LLaMA."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch (pip install slmjax[parity])")
transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install slmjax[parity])")

from safetensors.numpy import save_file

from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import save_huggingface
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from slmjax.models.parameters import abstract_leaves
from slmjax.models.positions import alibi_slopes
from tests.parity import miniatures as mini
from tests.parity import test_family_directories as directories

GLM = {**directories.GQA, "head_dim": 8, "pad_token_id": 0}
CASES = {
    **{
        name: directories.CASES[name]
        for name in (
            *("gpt_neo", "gpt_neo, odd windows", "gptj", "gptj, tied", "gpt_bigcode", "gpt_bigcode, unscaled"),
            *("starcoder2", "starcoder2, no biases", "mpt", "mpt, untied", "cohere", "cohere, untied", "cohere2"),
        )
    },
    "glm": ("Glm", GLM),
    "glm4": ("Glm4", GLM),
}
PROMPT, NEW = 9, 12
# What says nothing of the network: ids, dtypes, dropout, which version wrote it, how it is run.
BESIDE = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "bos_token_id"}
BESIDE |= {"eos_token_id", "pad_token_id", "attention_types"}  # attention_layers says the same


def directory_of(case, directory):
    """A random model of transformers, saved; no id ends its texts."""
    kind, arguments = CASES[case]
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model = mini.random_model(getattr(transformers, f"{kind}Config")(**{**arguments, **ids}))
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_generation_gives_transformers_tokens(case, tmp_path):
    """Through the cache, beyond every window, rows of different lengths, and one row, whose products are merged."""
    model = directory_of(case, tmp_path)
    place = open_huggingface(tmp_path)
    lm = LanguageModel(config=place.config, params=read_weights(place), tokenizer=mini.tokenizer())
    prompts = [row.tolist() for row in mini.random_tokens(2, PROMPT)]
    prompts[1] = prompts[1][3:]
    ours = generate_ids(lm, prompts, max_new_tokens=NEW, stop_ids=())
    assert generate_ids(lm, prompts[:1], max_new_tokens=NEW, stop_ids=()) == ours[:1]
    for prompt, found in zip(prompts, ours, strict=True):
        options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
        theirs = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert found == theirs


@pytest.mark.parametrize("case", CASES)
def test_transformers_config_of_our_export_is_its_own(case, tmp_path):
    """Every key of its class that says something of the network."""
    kind, arguments = CASES[case]
    theirs = getattr(transformers, f"{kind}Config")(**arguments)
    model_type = theirs.model_type
    values = json.loads(theirs.to_json_string(use_diff=False))
    family = FAMILIES[model_type]
    written = family.config_to(family.config_from(values))
    again = type(theirs).from_dict(json.loads(json.dumps(written)))
    expected, found = theirs.to_dict(), again.to_dict()
    keys = {key for key in expected if key not in BESIDE and "drop" not in key}
    for nested in ("attn_config", "rope_parameters"):
        for values in (expected, found):
            values[nested] = {k: v for k, v in (values.get(nested) or {}).items() if k not in BESIDE and v is not None}
    assert {key: found.get(key) for key in keys} == {key: expected[key] for key in keys}


@pytest.mark.parametrize("max_bias", [4, 8, 16])
@pytest.mark.parametrize("num_heads", [1, 6, 8, 12, 71])
def test_alibi_slopes_are_mpts(num_heads, max_bias):
    mpt = transformers.models.mpt.modeling_mpt
    bias = mpt.build_mpt_alibi_tensor(num_heads, 2, alibi_bias_max=max_bias)  # [H, 1, S], 0 for the last key
    np.testing.assert_allclose(alibi_slopes(num_heads, max_bias), -bias[:, 0, 0].numpy(), rtol=1e-6)


@pytest.mark.slow
def test_internlm2_is_llama_in_transformers(tmp_path):
    """Its wqkv unpacked: what we export as LLaMA has the logits of the numpy network."""
    values = {**directories.LLAMA_LIKE, "model_type": "internlm2", "bias": True}
    family = FAMILIES["internlm2"]
    config = family.config_from(values)
    rng, leaves = np.random.default_rng(0), abstract_leaves(config)

    def zeros(leaf):
        shape = leaves[leaf.path].shape
        return np.zeros(shape if leaf.repeat is None else shape[1:], np.float32)

    entries = family.entries(config)
    tensors = {e.name: directories.draw(e.name, e.join([zeros(x) for x in e.leaves]).shape, rng) for e in entries}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(values))
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    place = open_huggingface(tmp_path / "theirs")
    lm = LanguageModel(config=place.config, params=read_weights(place), tokenizer=mini.tokenizer())
    save_huggingface(lm, tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert model.config.model_type == "llama"
    tokens = mini.random_tokens()
    expected = np.stack([directories.internlm2(values, tensors, row) for row in tokens])
    mini.assert_close(mini.their_logits(model, tokens), expected)
