"""Nothing is lost on the way: Hugging Face -> slmjax -> Hugging Face, and -> GGUF -> Hugging Face, of every family.

Config, weights, tokenizer, templates, stop ids and generation settings are those that came, or the difference was told.
"""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import slmjax
from slmjax.errors import UserError
from slmjax.formats.gguf.architectures import ROUNDING
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.formats.weight_map import joined_shapes
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import flatten

VOCAB, WIDTH, LAYERS, HEADS, FFN, CONTEXT = 320, 64, 2, 4, 96, 128
# Every family finds its own spelling among these; what differs from family to family comes on top.
TINY = {"vocab_size": VOCAB, "initializer_range": 0.02, "head_dim": 16}
TINY |= dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "model_dim", "word_embed_proj_dim"), WIDTH)
TINY |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"), LAYERS)
TINY |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), HEADS)
TINY |= dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), FFN)
TINY |= dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_len", "max_context_length"), CONTEXT)
OWN = {
    "openelm": {"num_query_heads": [4, 4], "num_kv_heads": [2, 2], "ffn_multipliers": [1.5, 1.5]},
    "openlm": {"norm_type": "gain_only_lp_layer_norm", "qk_norm": True, "norm_eps": 1e-5},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 8},
    "mpt": dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 4 * WIDTH),
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "num_hidden_layers": 6},
}
READ_ONLY = {"gemma3"}  # the text part of a model of pictures is written as gemma3_text
QUICK = ("llama", "qwen2", "gemma3_text", "gpt2")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n not in READ_ONLY]
TEMPLATES = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
GENERATION |= {"max_new_tokens": 77, "stop_strings": ["\n\n"], "pad_token_id": 0, "bos_token_id": None}
TEXTS = ("the quick brown fox", "  a\ttab, and <|turn_end|> in it\n\n", "naïve 🙂 and <|pad|>")


def config_of(model_type: str) -> ModelConfig:
    """A small network of the family, its queries grouped where it has groups."""
    family = FAMILIES[model_type]
    for kv_heads in (2, HEADS):
        keys = dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), kv_heads)
        config = family.config_from({"model_type": model_type, **TINY, **keys, **OWN.get(model_type, {})})
        if not config.differences(family.config_from(json.loads(json.dumps(family.config_to(config))))):
            return config
    raise AssertionError(f"{model_type} has no small network here: give its keys in OWN")


@pytest.fixture(scope="module")
def vocabulary() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog, hello there "] * 5, trainer)
    made.add_special_tokens(["<|turn_end|>", "<|pad|>"])
    return made


def write_directory(directory, model_type: str, vocabulary: tokenizers.Tokenizer) -> dict:
    """A directory as transformers leaves it, with all that a conversion may lose; returns its tensors."""
    directory.mkdir()
    family, config = FAMILIES[model_type], config_of(model_type)
    rng, entries = np.random.default_rng(0), FAMILIES[model_type].entries(config)
    shapes = zip(entries, joined_shapes(config, entries), strict=True)
    tensors = {e.name: rng.standard_normal(shape).astype(np.float32) for e, shape in shapes}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    end = vocabulary.token_to_id("<|turn_end|>")
    ids = {"bos_token_id": None, "eos_token_id": [end, 0], "pad_token_id": 0}
    values = {"model_type": model_type, "architectures": [family.architecture], **family.config_to(config), **ids}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": None}
    settings |= {"pad_token": "<|pad|>", "add_bos_token": False, "chat_template": TEMPLATES, "padding_side": "left"}
    for name, content in (
        ("config.json", values),
        ("generation_config.json", GENERATION | {"eos_token_id": [end, 0]}),
        ("tokenizer_config.json", settings),
    ):
        (directory / name).write_text(json.dumps(content))
    vocabulary.save(str(directory / "tokenizer.json"))
    return tensors


def tokens_of(path):
    """What a tokenizer makes of texts and calls its tokens; of those that it adds, which are special."""
    tokenizer = slmjax.load(path).tokenizer
    ids = [tokenizer.encode(text, allow_special) for text in TEXTS for allow_special in (False, True)]
    return ids, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.special_tokens()


@pytest.mark.parametrize("model_type", NAMES)
def test_to_a_directory_and_back(model_type, vocabulary, tmp_path):
    tensors = write_directory(tmp_path / "theirs", model_type, vocabulary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = slmjax.load(tmp_path / "theirs")
        slmjax.save(lm, tmp_path / "own")
        own = slmjax.load(tmp_path / "own")
        slmjax.save(own, tmp_path / "again", format="huggingface")
    assert (own.config, own.stop_ids, own.generation) == (lm.config, lm.stop_ids, lm.generation)
    assert own.tokenizer.settings == lm.tokenizer.settings
    theirs, again = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("theirs", "again"))
    family = FAMILIES[again["model_type"]]
    assert not lm.config.differences(family.config_from(again))
    assert {k: again[k] for k in theirs if k.endswith("_id")} == {k: v for k, v in theirs.items() if k.endswith("_id")}
    if family.model_type == model_type:
        written = load_file(tmp_path / "again" / "model.safetensors")
        assert written.keys() == tensors.keys()
        assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
    assert_same_sides(tmp_path)


def assert_same_sides(tmp_path):
    """Settings, templates and tokens of the directory that came and of the one that was written."""
    theirs, again = tmp_path / "theirs", tmp_path / "again"
    settings = [json.loads((place / "generation_config.json").read_text()) for place in (theirs, again)]
    assert settings[0] == settings[1]
    templates = [
        json.loads((place / "tokenizer_config.json").read_text())["chat_template"] for place in (theirs, again)
    ]
    assert templates[0] == templates[1]
    assert (again / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert tokens_of(theirs) == tokens_of(again)


@pytest.mark.parametrize("model_type", NAMES)
def test_to_gguf_and_back(model_type, vocabulary, tmp_path, record_property):
    """Equal, or told: an architecture that GGUF has not, or a network that it rounds, is refused by name."""
    write_directory(tmp_path / "theirs", model_type, vocabulary)
    lm = slmjax.load(tmp_path / "theirs")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            slmjax.save(lm, tmp_path / "model.gguf", dtype="float32")
        except UserError as error:
            record_property("gguf", (model_type, str(error)))
            assert "GGUF has no architecture" in str(error)
            return
    record_property("gguf", (model_type, "equal"))
    back = slmjax.load(tmp_path / "model.gguf")
    assert not lm.config.differences(back.config, ignore=ROUNDING, rel_tol=1e-6)
    assert back.stop_ids == lm.stop_ids and back.generation == lm.generation and not told
    slmjax.save(dataclasses.replace(back, config=lm.config), tmp_path / "again", format="huggingface")
    assert_same_params(lm.params, back.params, atol=5e-7 if lm.config.norm_unit_offset else 0.0)
    assert_same_sides(tmp_path)


def assert_same_params(a, b, atol):
    """Equal to the bit, but for gains that a GGUF file holds with one added to them, which rounds."""
    left, right = flatten(a), flatten(b)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_allclose(np.asarray(left[path]), np.asarray(right[path]), rtol=0, atol=atol, err_msg=path)
