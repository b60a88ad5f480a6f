"""SmolLM2-135M-Instruct, read from its GGUF file, says what transformers makes it say, token by token."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slmjax
from slmjax.inference.generate import generate_ids, stop_ids_of
from slmjax.tokenization.chat_template import ChatTemplate
from slmjax.tokenization.chat_tokens import encode_messages

pytestmark = pytest.mark.slow
WINDOW = 1024


@pytest.fixture(scope="module")
def folder(assets):
    return assets / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def reference(folder):
    return json.loads((folder / "reference_outputs.json").read_text())


@pytest.fixture(scope="module")
def lm(folder):
    return slmjax.load(next(folder.glob("*.gguf")))


def without_stop(lm, ids):
    return ids[:-1] if ids and ids[-1] in stop_ids_of(lm) else ids


@pytest.fixture(scope="module")
def continuations(lm, reference):
    """[(greedy continuation, the reference's)]: of all texts and of the conversation, which is the last.

    They are one batch: rows of different lengths, padded on the left.
    """
    cases = [*reference["greedy"], reference["chat"]]
    prompts = [case["prompt_ids"] for case in cases]
    expected = [without_stop(lm, case["output_ids"][len(case["prompt_ids"]) :]) for case in cases]
    rows = generate_ids(lm, prompts, max_new_tokens=max(map(len, expected)), stop_ids=stop_ids_of(lm))
    return [(row[: len(wanted)], wanted) for row, wanted in zip(rows, expected, strict=True)]


def test_greedy_continuations_are_the_references(lm, reference, continuations):
    for case in reference["greedy"]:
        assert lm.tokenizer.encode(case["prompt"]) == case["prompt_ids"]
    for got, expected in continuations[:-1]:
        assert got == expected


def test_the_chat_is_rendered_and_answered_as_the_reference(lm, reference, continuations):
    chat = reference["chat"]
    template = ChatTemplate.of(lm.tokenizer)
    assert template.render(chat["messages"], add_generation_prompt=True) == chat["rendered"]
    ids = encode_messages(lm.tokenizer, template, chat["messages"], add_generation_prompt=True)
    assert ids == chat["prompt_ids"]
    got, expected = continuations[-1]
    assert got == expected


def test_the_losses_of_wikitext_are_the_references(lm, reference, assets):
    ids = lm.tokenizer.encode((assets / "data/text/wikitext2-test.txt").read_text(encoding="utf-8"))
    wanted = reference["wikitext2_test"]
    assert ids[: len(wanted["first_ids"])] == wanted["first_ids"]

    @jax.jit
    def loss(params, window):
        logits = jax.nn.log_softmax(lm.apply(params, window[None, :-1])[0])
        return -jnp.mean(jnp.take_along_axis(logits, window[1:, None], axis=-1))

    # Two of the eight windows whose perplexity is 23.609: each of their losses is the reference's.
    windows = np.asarray(ids[: 2 * WINDOW], np.int32).reshape(2, WINDOW)
    losses = [float(loss(lm.params, window)) for window in windows]
    np.testing.assert_allclose(losses, wanted["mean_nll_per_window"][:2], atol=1e-3)
