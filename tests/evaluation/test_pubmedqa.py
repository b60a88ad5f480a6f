"""Choices by likelihood, against the whole forward pass by hand; PubMedQA's two numbers against their definitions."""

import json

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evaluation.tasks.choices import loglikelihoods
from slmjax.evaluation.tasks.pubmedqa import PubMedQA, macro_f1, read_pubmedqa
from slmjax.evaluation.tasks.task import Settings

ANSWERS = ("yes", "no", "maybe", "no")


@pytest.fixture
def data(tmp_path):
    questions = {
        str(n): {"QUESTION": f"is it {n}?", "CONTEXTS": ["one", "two " * n], "final_decision": answer}
        for n, answer in enumerate(ANSWERS)
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(questions))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(dict.fromkeys(("1", "2", "3"), "")))
    return tmp_path


def by_hand(lm, prompt, continuation):
    start = lm.tokenizer.encode(prompt)
    tail = lm.tokenizer.encode(prompt + continuation)[len(start) :]
    row = (start + tail)[-lm.context_length - 1 :]
    log_probs = jax.nn.log_softmax(lm.apply(lm.params, np.asarray([row[:-1]])))[0]
    return sum(float(log_probs[len(row) - 1 - len(tail) + i, token]) for i, token in enumerate(tail))


def test_likelihoods_are_those_of_the_whole_forward(talker):
    """Prompts of different lengths, one too long for the context; continuations of one token and of several."""
    requests = [("Answer:", [" yes", " no", " select name"]), ("question: where is ohio " * 40, [" no", " maybe"])]
    assert len(talker.tokenizer.encode(requests[1][0])) > talker.context_length // 2
    long = [("x y z " * 300, [" yes", " where is"])]
    scores = loglikelihoods(talker, requests + long, progress=False)
    for (prompt, continuations), ours in zip(requests + long, scores, strict=True):
        wanted = [by_hand(talker, prompt, continuation) for continuation in continuations]
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-4)
        assert len(set(ours)) == len(ours)
    with pytest.raises(UserError, match="no tokens of its own"):
        loglikelihoods(talker, [("Answer:", [""])], progress=False)


def test_questions_are_divided_as_the_authors_did(data):
    test, train = read_pubmedqa(data, "test"), read_pubmedqa(data, "train")
    assert [r["completion"] for r in test] == [" no", " maybe", " no"] and len(train) == 1
    assert train[0] == {"prompt": "Abstract: one\n\nQuestion: is it 0?\nAnswer:", "completion": " yes"}


def test_the_likeliest_answer_is_chosen(data, talker):
    result = PubMedQA().evaluate(talker, data, Settings(progress=False)).to_dict()
    chosen = [ANSWERS[:3][int(np.argmax(p["log_likelihoods"]))] for p in result["predictions"]]
    assert [p["answer"] for p in result["predictions"]] == chosen
    assert [p["gold"] for p in result["predictions"]] == ["no", "maybe", "no"]
    assert result["accuracy"] == np.mean([p["answer"] == p["gold"] for p in result["predictions"]])
    assert result["most_frequent_answer_accuracy"] == 2 / 3
    assert len(PubMedQA().evaluate(talker, data, Settings(limit=1, progress=False)).predictions) == 1


def test_macro_f1_is_the_mean_of_the_classes():
    chosen, right = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    np.testing.assert_allclose(macro_f1(chosen, right, 3), np.mean([2 / 3, 1 / 2, 0.0]))
    sklearn = pytest.importorskip("sklearn.metrics")
    np.testing.assert_allclose(macro_f1(chosen, right, 3), sklearn.f1_score(right, chosen, average="macro"))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not readable as JSON"), ("[]", "no JSON object"), ('{"1": {}}', "lacks"), ("{}", "no question")],
)
def test_files_of_something_else(data, text, said):
    (data / "ori_pqal.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_pubmedqa(data, "test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(num_fewshot=1), "pubmedqa takes no examples in its prompts"),
        (Settings(limit=-1), "limit to be at least 0, not -1"),
        (Settings(split="dev"), "pubmedqa has no split 'dev': choose one of train, test"),
    ],
)
def test_settings_that_the_task_does_not_take_are_refused(talker, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        PubMedQA().evaluate(talker, tmp_path, settings)
