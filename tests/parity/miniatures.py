"""Tiny random models of transformers with their quirks switched on, and what every family is asked to prove."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers

from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import family_for, save_huggingface
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.kv_cache import empty_cache
from slmjax.models.transformer import Transformer
from slmjax.tokenization.backends import HuggingFaceBackend
from slmjax.tokenization.tokenizer import Tokenizer

VOCAB, T, CHUNK = 67, 24, 8
TOLERANCE = 1e-4


def tokenizer() -> Tokenizer:
    """Words w0 ... w66, of which the first two begin and end texts."""
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCAB)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(HuggingFaceBackend(model))


def random_model(config, kind="CausalLM"):
    """A model of a transformers config with weights in which neither biases nor gains are neutral."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and name.endswith("weight") and "gemma" not in config.model_type
            parameter.copy_(float(gain) + 0.2 * torch.randn_like(parameter))
    return model


def random_tokens(batch=2, length=T):
    return np.random.default_rng(0).integers(2, VOCAB, (batch, length))


def their_logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(torch.tensor(tokens), **{k: torch.tensor(v) for k, v in kwargs.items()}).logits.numpy()


def assert_close(logits, expected) -> float:
    """Within the tolerance of logits of size one; larger ones have the rounding of their size. Returns the largest."""
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE * max(1.0, np.abs(expected).max()), rtol=0)
    return float(np.abs(logits - expected).max())


def our_logits(config: ModelConfig, params, tokens):
    return np.asarray(jax.jit(Transformer(config).apply)({"params": params}, tokens))


def cached_logits(config: ModelConfig, params, tokens, positions, mask, chunk) -> np.ndarray:
    """Logits through the cache, `chunk` tokens at a time."""
    step = jax.jit(lambda p, c, t, q, s: Transformer(config).apply({"params": p}, t, q, s, c, method="logits"))
    cache, pieces = empty_cache(config, *tokens.shape, jnp.float32), []
    for start in range(0, tokens.shape[1], chunk):
        part = np.s_[:, start : start + chunk]
        logits, cache = step(params, cache, tokens[part], positions[part], mask[part])
        pieces.append(logits)
    return np.concatenate(pieces, axis=1)


def assert_family(model, directory, *, chunk=CHUNK) -> tuple[float, float]:
    """Every road of a family: in, left-padded through the cache, out, and back into transformers.

    Returns the largest differences of logits: of whole sequences, and of a left-padded batch through the cache.
    """
    model.save_pretrained(directory / "theirs")
    place = open_huggingface(directory / "theirs")
    assert place.family.model_type == model.config.model_type
    config, params = place.config, read_weights(place)
    tokens = random_tokens()
    expected = their_logits(model, tokens)
    assert np.abs(expected).max() > 0.1
    whole = assert_close(our_logits(config, params, tokens), expected)
    cached = assert_left_padding(model, config, params, tokens, chunk)

    save_huggingface(
        LanguageModel(config=config, params=params, tokenizer=tokenizer()),
        directory / "ours",
        family=model.config.model_type,
    )
    family_for(config)  # some family can say it without being named
    back = transformers.AutoModelForCausalLM.from_pretrained(directory / "ours", attn_implementation="eager").eval()
    assert back.config.model_type == model.config.model_type
    theirs, ours = model.state_dict(), back.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    np.testing.assert_array_equal(their_logits(back, tokens), expected)
    return whole, cached


def assert_left_padding(model, config, params, tokens, chunk, pad=5) -> float:
    """A row padded on the left, and one beside it that is not, through the cache: transformers' logits."""
    mask = np.ones_like(tokens)
    mask[0, :pad] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    accepts = "position_ids" in inspect.signature(model.forward).parameters
    extra = {"position_ids": positions} if accepts else {}
    expected = their_logits(model, tokens, attention_mask=mask, **extra)
    logits = cached_logits(config, params, tokens, positions.astype(np.int32), mask.astype(np.int32), chunk)
    seen = mask == 1
    return assert_close(logits[seen], expected[seen])
