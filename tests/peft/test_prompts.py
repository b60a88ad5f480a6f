"""Prefixes and prompts: what packed rows see, what the cache holds, and where they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.kv_cache import empty_cache
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import make_method
from slmjax.peft.methods.lstm import init_lstm, lstm
from slmjax.peft.prefix_cache import prefix_length, start_cache

N = 3
SMALL = {"vocab_size": 61, "num_layers": 2, "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 24}
NETWORKS = {
    "rope": ModelConfig(**SMALL),
    "windows": ModelConfig(**SMALL, layer_pattern=("local", "global"), window=3, qk_norm="head"),
    "alibi": ModelConfig(**SMALL, position="alibi"),
    "learned positions": ModelConfig(**SMALL, position="learned", norm="layer", gated=False, context_length=32),
}
METHODS = {"prefix": {"num_virtual_tokens": N}, "prompt": {"num_virtual_tokens": N}}


SLOW = {"alibi", "learned positions"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NETWORKS],
)
def network(request):
    return NETWORKS[request.param]


@pytest.fixture(scope="module", params=METHODS)
def tuned(request, network, tune):
    return tune(model=network, method=request.param, **{request.param: METHODS[request.param]})


def run(tuned, tokens, **kwargs):
    return forward(Network(tuned.model), tuned.method.variables(tuned.trained, tuned.frozen), tokens, **kwargs)


def test_every_document_of_a_packed_row_sees_the_prefix(tuned, jit):
    tokens = np.random.default_rng(0).integers(0, 61, (1, 9)).astype(np.int32)
    segments = np.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 2]], np.int32)
    positions = np.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4]], np.int32)
    packed = jit(lambda: run(tuned, tokens, positions_BT=positions, segments_BT=segments))()
    first, second = jit(lambda: (run(tuned, tokens[:, :4]), run(tuned, tokens[:, 4:])))()
    np.testing.assert_allclose(packed, np.concatenate([first, second], axis=1), atol=2e-5)


def test_decoding_through_the_cache_is_the_whole_sequence(tuned, jit):
    """A left-padded row beside a full one: prefill of four tokens, then one, then two."""
    tokens = np.random.default_rng(1).integers(0, 61, (2, 7)).astype(np.int32)
    expected = jit(lambda: (run(tuned, tokens), run(tuned, tokens[1:, 2:])))()
    variables = tuned.method.variables(tuned.trained, tuned.frozen)
    assert prefix_length(variables["peft"]) == N

    @jit
    def decode():
        cache = start_cache(empty_cache(tuned.model.config, 2, N + 10, jnp.float32), variables["peft"])
        positions = np.asarray([np.arange(7), np.maximum(np.arange(7) - 2, 0)], np.int32)
        segments = np.asarray([[1] * 7, [0, 0] + [1] * 5], np.int32)
        logits = []
        for first, last in ((0, 4), (4, 5), (5, 7)):
            at = np.s_[:, first:last]
            out, cache = run(tuned, tokens[at], positions_BT=positions[at], segments_BT=segments[at], cache=cache)
            logits.append(out)
        return jnp.concatenate(logits, axis=1)

    logits = decode()
    np.testing.assert_allclose(logits[0], expected[0][0], atol=3e-5)
    np.testing.assert_allclose(logits[1, 2:], expected[1][0], atol=3e-5)


def test_a_prompt_of_real_tokens_is_those_tokens_in_front(tune, jit):
    """A prompt that starts from a text is the text, before any training; so is a prefix of its keys and values."""
    text, tokens = [5, 17, 9, 40], np.random.default_rng(2).integers(0, 61, (2, 6)).astype(np.int32)
    network = NETWORKS["learned positions"]
    whole = np.concatenate([np.tile(text, (2, 1)), tokens], axis=1).astype(np.int32)
    for name in ("prompt", "prefix"):
        tuned = tune(model=network, method=name, **{name: {"num_virtual_tokens": 4}})
        config = PeftConfig(method=name, **{name: {"num_virtual_tokens": 4, "init": "text", "init_text": "four words"}})
        method = make_method(config, tuned.model, encode=lambda _: text)
        trained, frozen = jit(method.split)(tuned.base, jax.random.key(0))
        logits = jit(lambda v, model=tuned.model: forward(Network(model), v, tokens))(method.variables(trained, frozen))
        expected = jit(tuned.model.apply)({"params": tuned.base}, whole)
        np.testing.assert_allclose(logits, expected[:, 4:], atol=2e-5)


def test_a_text_is_cut_or_repeated_to_the_prompt(tune):
    tuned = tune(model=NETWORKS["rope"], method="prompt")
    for ids, wanted in ([1, 2], [1, 2, 1, 2, 1]), ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5]):
        config = PeftConfig(method="prompt", prompt={"num_virtual_tokens": 5, "init": "text", "init_text": "x"})
        method = make_method(config, tuned.model, encode=lambda _, ids=ids: ids)
        prompt = method.split(tuned.base, jax.random.key(0))[0]["peft"]["prompt"]
        np.testing.assert_array_equal(prompt, tuned.base["embedder"]["embedding"][np.asarray(wanted)])


def test_the_lstm_is_torchs():
    torch = pytest.importorskip("torch")
    params = init_lstm(jax.random.key(0), 5, 4)
    theirs = torch.nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            kind, layer = name.split("_l")
            direction = "backward" if layer.endswith("_reverse") else "forward"
            ours = params[f"{direction}_{layer[0]}"]
            array = {"weight_ih": ours["input_kernel"].T, "weight_hh": ours["state_kernel"].T, "bias_ih": ours["bias"]}
            tensor.copy_(torch.tensor(np.array(array.get(kind, np.zeros(16)))))
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    expected = theirs(torch.tensor(x)[None])[0][0].detach().numpy()
    np.testing.assert_allclose(jax.jit(lstm)(params, x), expected, atol=1e-6)
