"""Adapters that peft wrote of a resized model, of single tokens, with biases: its logits on the plain base."""

import functools

import jax
import numpy as np
import pytest

import slmjax
from slmjax.models.transformer import Transformer
from slmjax.peft.forward import Network, forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = np.array([[3, 9, 60, 33, 5, 66]], np.int32)
NEW = np.array([[3, 68, 60, 69, 5, 66]], np.int32)


def base_at(directory, tied):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


CASES = {
    "lora_bias": ({"lora_bias": True, "target_modules": ["q_proj", "o_proj", "down_proj"]}, 0),
    "tokens": ({"trainable_token_indices": [3, 9]}, 0),
    "tokens by module": ({"trainable_token_indices": {"embed_tokens": [3, 60]}}, 0),
    "grown": ({}, 70),
    "grown, trained": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 70),
    "grown, tokens": ({"trainable_token_indices": [68, 69]}, 70),
    "grown, LoRA of the table": ({"target_modules": ["q_proj", "embed_tokens"]}, 70),  # of a tied one: see below
    "trained": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 0),
}


@functools.cache
def program(config, options):
    return jax.jit(lambda variables, tokens: forward(Network(Transformer(config), options), variables, tokens))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_peft_wrote(case, tied, tmp_path):
    if case == "grown, LoRA of the table" and not tied:
        pytest.skip("peft's file then lacks the new rows of the head")
    more, vocabulary = CASES[case]
    base = base_at(tmp_path / "base", tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if vocabulary:
        torch.manual_seed(1)
        model.resize_token_embeddings(vocabulary)
    settings = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False} | more
    model = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    tokens = NEW if vocabulary else TOKENS
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    for merge in (True, False):
        lm = slmjax.load(tmp_path / "adapter", merge=merge)
        logits = np.asarray(program(lm.config, lm.options)(lm.variables, tokens))
        np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
