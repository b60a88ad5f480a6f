"""LLaMA's heirs and Gemma, quirks on: in from transformers to the logit, and back bit for bit."""

import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch (pip install slmjax[parity])")
transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install slmjax[parity])")

from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.inference import generate as generation
from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from tests.parity import miniatures as mini

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0]}
PARTIAL = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4, "partial_rotary_factor": 0.7}
SIZES = {"vocab_size": mini.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
SIZES |= {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
LOCAL, FULL = "sliding_attention", "full_attention"

# name -> (transformers' config class, what is changed); T = 24 tokens go beyond every window and every 16.
CASES = {
    "llama": ("Llama", {}),
    "llama, tied and biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama 3.2": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, odd head": ("Llama", {"head_dim": 10, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 11, "sliding_window": 5, "final_logit_softcapping": 3.0}),
    "gemma3_text": (
        "Gemma3Text",
        {
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 11,
            "sliding_window": 5,
            "rope_parameters": {
                LOCAL: {"rope_type": "default", "rope_theta": 1e4},
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 5, "num_key_value_heads": 4}),
    "phi3, longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "sliding_window": 50},
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 0, 1, 0]}),
    "smollm3, windows": ("SmolLM3", {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5}),
    "olmo2": ("Olmo2", {"attention_bias": True}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 1 / 64,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "glm": ("Glm", {"attention_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5e3}}),
    "glm4": ("Glm4", {"head_dim": 12, "tie_word_embeddings": True, "rope_parameters": PARTIAL}),
}
QUICK = {"llama 3.2", "mistral", "gemma3_text", "phi3, longrope"}  # one each of what differs most


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES])
def test_transformers_and_back(case, tmp_path, record_property):
    family, changes = CASES[case]
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    # A bare cache keeps the keys from before longrope's switch; generation runs them anew, as the test below shows.
    chunk = mini.T if "longrope" in case else mini.CHUNK
    found = mini.assert_family(mini.random_model(config), tmp_path, chunk=chunk)
    record_property("largest_differences", (case, *found))  # benchmarks/family_parity.py makes a table of them


def test_generation_goes_on_beyond_longropes_switch(tmp_path, monkeypatch):
    """transformers throws the cache away when a text outgrows the original context (16); so many tokens are equal."""
    family, changes = CASES["phi3, longrope"]
    model = mini.random_model(getattr(transformers, f"{family}Config")(**SIZES | changes))
    model.save_pretrained(tmp_path)
    place = open_huggingface(tmp_path)
    lm = LanguageModel(config=place.config, params=read_weights(place), tokenizer=mini.tokenizer())
    prompt = mini.random_tokens(1, 11)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "eos_token_id": -1}
    theirs = model.generate(torch.tensor(prompt), **options)
    assert generate_ids(lm, prompt.tolist(), max_new_tokens=12) == theirs[:, 11:].tolist()
    monkeypatch.setattr(generation, "switches", lambda *_: [])
    assert generate_ids(lm, prompt.tolist(), max_new_tokens=12) != theirs[:, 11:].tolist()  # the switch matters here
