"""What a fine-tune adds is run as it was trained: by generation with its cache, in conversations, in evaluation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slmjax
from slmjax.errors import UserError
from slmjax.evaluation.bits_per_byte import evaluate_text
from slmjax.inference.chat import Conversation
from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import make_method

METHODS = {
    "lora": {"lora": {"r": 2, "targets": ("q_proj", "down_proj")}},
    "dora": {"method": "lora", "lora": {"r": 2, "dora": True}},
    "qlora": {"method": "lora", "lora": {"r": 2}, "quantize": "int8"},
    "ia3": {},
    "houlsby": {"method": "adapter", "adapter": {"kind": "houlsby", "reduction_factor": 4}},
    "parallel": {"method": "adapter", "adapter": {"kind": "parallel"}},
    "prefix": {"prefix": {"num_virtual_tokens": 5}},
    "prompt": {"prompt": {"num_virtual_tokens": 5}},
    "p_tuning": {"p_tuning": {"num_virtual_tokens": 3}},
}
PREFIXED = ("prefix", "prompt", "p_tuning")
PROMPTS = [[5, 6, 7], list(range(40, 70)), [9]]
TEXT = ["the old river walks", "a stone"]
OTHER_PLACES = {
    "windows": {"window": 4, "layer_pattern": ("local", "global")},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned"},
}


@pytest.fixture(scope="module")
def tuned(lm):
    """tuned(name, **changes of its config): the model with a method that has moved away from its start."""

    @functools.cache
    def tune(name, seed=0, **changes):
        model = lm
        if changes:
            network = dataclasses.replace(lm.config, **changes)
            params = jax.jit(Transformer(network).init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
            model = LanguageModel(config=network, params=params, tokenizer=lm.tokenizer)
        config = PeftConfig(**({"method": name} | METHODS[name]))
        method = make_method(config, Transformer(model.config))
        trained, frozen = jax.jit(method.split)(model.params, jax.random.key(seed))
        rng = np.random.default_rng(seed)
        trained = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), trained)
        variables = jax.jit(method.variables)(trained, frozen)
        return dataclasses.replace(model, **variables, options=method.options)

    return tune


def argmax_of_the_full_forward(model, outputs):
    """For each prompt and its continuation, what should have come at each place of the continuation."""
    apply, length = jax.jit(model.apply), max(map(len, PROMPTS)) + 8
    rows = [prompt + new + [0] * length for prompt, new in zip(PROMPTS, outputs, strict=True)]
    logits_BTV = apply(model.params, np.asarray([row[:length] for row in rows]))  # causal: what follows is not seen
    return [
        np.argmax(logits_TV[len(prompt) - 1 : len(prompt) + 7], axis=-1).tolist()
        for prompt, logits_TV in zip(PROMPTS, logits_BTV, strict=True)
    ]


@pytest.mark.parametrize("name", METHODS)
def test_greedy_decoding_is_the_argmax_of_the_full_forward(lm, tuned, name):
    """Of a left-padded batch; and it is another text than the base's, else nothing was shown."""
    model = tuned(name)
    outputs = generate_ids(model, PROMPTS, max_new_tokens=8)
    assert outputs == argmax_of_the_full_forward(model, outputs)
    assert outputs != generate_ids(lm, PROMPTS, max_new_tokens=8)


@pytest.mark.parametrize("place", OTHER_PLACES)
def test_a_prefix_is_seen_through_windows_and_stands_before_all_places(tuned, place):
    model = tuned("prefix", **OTHER_PLACES[place])
    outputs = generate_ids(model, PROMPTS, max_new_tokens=8)
    assert outputs == argmax_of_the_full_forward(model, outputs)


@pytest.mark.parametrize("name", ["prefix", "houlsby"])
def test_a_conversation_keeps_what_was_run_behind_the_prefix(lm, tuned, name, monkeypatch):
    monkeypatch.setitem(lm.tokenizer.settings, "chat_template", "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    model = tuned(name)
    conversation = Conversation(model, max_new_tokens=6)
    for line in ("the old river", "walks"):
        asked = "".join(f"[{m['content']}]" for m in [*conversation.messages, {"content": line}])
        ids = generate_ids(model, [model.tokenizer.encode(asked)], max_new_tokens=6, stop_ids=[model.tokenizer.eos_id])
        assert conversation.answer(line) == model.tokenizer.decode(ids[0])


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_evaluation_is_of_the_fine_tuned_network(lm, tuned, name):
    model = tuned(name)
    texts = [model.tokenizer.encode(text) for text in TEXT]
    nll = 0.0
    for ids in texts:
        log_probs_TV = jax.nn.log_softmax(
            forward(Network(model.model, model.options), model.variables, np.asarray([ids]))[0]
        )
        nll -= float(sum(log_probs_TV[t, ids[t + 1]] for t in range(len(ids) - 1)))
    nll += len(texts) * np.log(lm.config.vocab_size)  # the first token of each
    got = evaluate_text(model, TEXT, progress=False)
    np.testing.assert_allclose(got["nll_per_token"] * got["tokens"], nll, rtol=1e-5)


@pytest.mark.parametrize("name", PREFIXED)
def test_a_prefix_takes_of_the_context(lm, tuned, name):
    model = tuned(name)
    longest = model.context_length
    n = next(iter(METHODS[name].values()))["num_virtual_tokens"]
    assert longest == lm.context_length - n
    with pytest.raises(UserError, match=f"context is {longest}"):
        generate_ids(model, [[5] * (longest - 3)], max_new_tokens=4)


@pytest.mark.parametrize(
    ("name", "said"), [("prefix", "prefix"), ("houlsby", "bottleneck"), ("lora", "cannot hold an adapter")]
)
@pytest.mark.parametrize("format", ["slmjax", "huggingface", "gguf"])
def test_what_no_file_of_weights_can_hold_is_not_saved(tuned, name, said, format, tmp_path):
    with pytest.raises(UserError, match=said):
        slmjax.save(tuned(name), tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_prompt_of_real_tokens_continues_as_the_text_in_front_does(assets):
    """Of the real model: prompt tuning that starts from a text is that text, before any training."""
    path = assets / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not at hand")
    lm = slmjax.load(path)
    front, rest = (
        lm.tokenizer.encode("The capital of France is Paris."),
        lm.tokenizer.encode(" The capital of Italy is"),
    )
    prompt = {"num_virtual_tokens": len(front), "init": "text", "init_text": "front"}
    method = make_method(PeftConfig(method="prompt", prompt=prompt), Transformer(lm.config), lambda _: front)
    trained, frozen = method.split(lm.params, jax.random.key(0))
    variables = method.variables(trained, frozen)
    model = dataclasses.replace(lm, peft=variables["peft"], options=method.options)
    whole, rest_alone = generate_ids(lm, [front + rest, rest], max_new_tokens=8)
    assert generate_ids(model, [rest], max_new_tokens=8) == [whole] != [rest_alone]
