"""The real model generates what transformers generated, token for token."""

import json

import pytest

import slmjax
from slmjax.inference.chat import Conversation
from slmjax.inference.generate import generate_ids

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(assets):
    folder = assets / "models" / "smollm2-135m-instruct"
    return json.loads((folder / "reference_outputs.json").read_text())


@pytest.fixture(scope="module")
def lm(assets):
    return slmjax.load(assets / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_greedy_ids_are_those_of_transformers_in_one_batch(lm, reference):
    cases = reference["greedy"]
    outputs = generate_ids(lm, [case["prompt_ids"] for case in cases], max_new_tokens=48, stop_ids=[2])
    for case, new in zip(cases, outputs, strict=True):
        expected = case["output_ids"][len(case["prompt_ids"]) :]
        assert new == (expected[:-1] if expected[-1] == 2 else expected)  # ours leave the stop id out


def test_the_chat_is_answered_identically(lm, reference):
    chat = reference["chat"]
    answer = Conversation(lm, context=256).answer(chat["messages"][0]["content"])
    new = [token for token in chat["output_ids"][len(chat["prompt_ids"]) :] if token != 2]
    assert answer == lm.tokenizer.decode(new)
