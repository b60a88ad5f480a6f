"""The model that lm-evaluation-harness evaluates: what it asks in tokens, properties of its answers, what it refuses.

Parity with the harness's own class for transformers is in tests/parity/test_harness_tasks.py.
"""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install slmjax[eval])")

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

import slmjax
from slmjax.cli.shared.harness_model import SlmjaxModel
from slmjax.errors import UserError
from slmjax.evaluation.harness.generation import StopStrings
from slmjax.evaluation.harness.model import HarnessModel

CONTEXTS = [
    "question: where is ohio",
    "question: where is ohio\n",
    "select  ",
    "Answer:",
    "",
    "\u00e9 name",
    "sql: select",
]
CONTINUATIONS = [" yes", "no", " maybe name", "\n\nyes", " select name"]
PAIRS = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]


def requests(kind, arguments, task="a_task"):
    return [Instance(kind, {}, args, 0, metadata=(task, n, 1)) for n, args in enumerate(arguments)]


def score(model, pairs):
    return model.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)


def generate(model, prompts, **settings):
    asked = [(prompt, {"max_gen_toks": 12, **settings}) for prompt in prompts]
    return model.generate_until(requests("generate_until", asked), disable_tqdm=True)


class Hook:
    """The harness's store of what is finished."""

    def __init__(self):
        self.kept = {}

    def add_partial(self, kind, arguments, answer):
        self.kept[kind, str(arguments)] = answer


@pytest.fixture
def model(talker):
    found = HarnessModel(talker)
    found.set_cache_hook(Hook())
    return found


def test_pairs_are_encoded_as_the_harness_encodes_them(model, monkeypatch):
    """Its own loop over `tok_encode`, and ours in batches; one context is encoded once."""
    asked = []
    monkeypatch.setattr(model, "_loglikelihood_tokens", lambda found, **_: asked.extend(found))
    TemplateLM.loglikelihood(model, requests("loglikelihood", PAIRS), disable_tqdm=True)
    pairs = list(model._encoder.encode_pairs(PAIRS))
    assert pairs == [(context, tail) for _, context, tail in asked]
    of_one_context = pairs[: len(CONTINUATIONS)]
    assert all(context is of_one_context[0][0] for context, _ in of_one_context)


def test_scores_depend_neither_on_order_nor_on_company_nor_on_sharing(model, talker):
    scores = score(model, PAIRS)
    order = random.Random(0).sample(range(len(PAIRS)), len(PAIRS))
    alone = HarnessModel(talker, share_prefixes=False)
    for other in (score(model, [PAIRS[n] for n in order]), score(alone, [PAIRS[n] for n in order])):
        for n, (logprob, greedy) in zip(order, other, strict=True):
            assert logprob == pytest.approx(scores[n][0], abs=1e-4) and greedy == scores[n][1]
    assert score(model, PAIRS[:1])[0][0] == pytest.approx(scores[0][0], abs=1e-4)


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}])
def test_answers_do_not_depend_on_the_mesh(model, talker, tmp_path, sizes):
    slmjax.save(talker, tmp_path / "model")
    meshed = SlmjaxModel(path=tmp_path / "model", batch_size=1, device="cuda:0", **sizes)
    assert meshed.get_model_info()["mesh"] == {axis: n for axis, n in sizes.items() if n > 1}
    for ours, theirs in zip(score(meshed, PAIRS), score(model, PAIRS), strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]
    assert generate(meshed, ["select", "question: "]) == generate(model, ["select", "question: "])


def test_a_text_rolled_over_is_the_sum_of_its_windows(model, talker):
    """Of a text that fits, its log-likelihood after the prefix; of a longer one, what its windows come to."""
    text = "question: where is ohio\nAnswer: maybe no"
    rolled = requests("loglikelihood_rolling", [(text,), ("yes",), ("",)])
    (whole, _, nothing) = model.loglikelihood_rolling(rolled, disable_tqdm=True)
    assert whole == pytest.approx(score(model, [("", text)])[0][0], abs=1e-4) and nothing == 0
    ids = talker.tokenizer.encode(text)
    short = HarnessModel(talker, max_length=4)
    windows = [(ids[max(0, n - 1) : n] or [talker.tokenizer.bos_id], ids[n : n + 4]) for n in range(0, len(ids) - 4, 4)]
    done = 4 * len(windows)
    windows.append((ids[len(ids) - 5 : done], ids[done:]))
    assert sum(len(tail) for _, tail in windows) == len(ids)
    expected = sum(logprob for logprob, _ in short._loglikelihood_tokens([(None, *w) for w in windows], True))
    assert short.loglikelihood_rolling(rolled[:1], disable_tqdm=True)[0] == pytest.approx(expected, abs=1e-4)


def test_a_text_is_what_comes_before_each_stop_string(model):
    prompts = ["question: where", "select name", "", "sql:"]
    free = generate(model, prompts)
    for stop in {text[2:4] for text in free if len(text) > 4}:
        assert generate(model, prompts, until=[stop]) == [text.split(stop)[0] for text in free]
    assert generate(model, prompts, until=free[0][1:3], max_tokens=12) == [t.split(free[0][1:3])[0] for t in free]
    assert generate(model, prompts[:1]) == free[:1]
    assert len(generate(model, ["select"] * 3, do_sample=True, temperature=5.0)) == 3


def test_a_special_token_among_the_stop_strings_ends_a_text_in_which_it_is_not_shown(talker):
    tokenizer = talker.tokenizer
    ids = [*tokenizer.encode("maybe yes"), tokenizer.eos_id, *tokenizer.encode(" no no")]
    assert StopStrings(tokenizer, []).cut(ids) == "maybe yes"
    assert StopStrings(tokenizer, ["yes", "may"]).cut(ids) == ""
    assert StopStrings(tokenizer, ["be", "maybe"]).cut(ids) == "may"  # each in turn, from what the last one left
    assert StopStrings(tokenizer, [], think_end="be").cut(ids) == "yes"
    assert (
        StopStrings(tokenizer, [], think_end=ids[0]).cut(ids) == tokenizer.decode(ids[1:]).split("<|")[0][:-6].lstrip()
    )


def test_every_finished_request_is_kept_at_once(model):
    asked = {
        "loglikelihood": PAIRS[:6],
        "loglikelihood_rolling": [("question: yes",), ("no",)],
        "generate_until": [("select", {"until": ["\n"], "max_gen_toks": 4}), ("sql", {"max_gen_toks": 3})],
    }
    for kind, arguments in asked.items():
        answers = getattr(model, kind)(requests(kind, arguments), disable_tqdm=True)
        assert model.cache_hook.kept == {(kind, str(a)): found for a, found in zip(arguments, answers, strict=True)}
        model.cache_hook.kept = {}


def test_requests_beyond_the_context_lose_their_beginning_and_are_counted(talker, capsys):
    model = HarnessModel(talker, max_length=8)
    long, tail = "question: where is ohio\n" * 3 + "Answer:", " yes"
    (cut, kept) = score(model, [(long, tail), ("yes", tail)])
    ids = talker.tokenizer.encode(long + tail)[-9:]
    size = len(talker.tokenizer.encode(long + tail)) - len(talker.tokenizer.encode(long))
    assert cut == model._loglikelihood_tokens([(None, ids[:-size], ids[-size:])], True)[0]
    assert kept == score(HarnessModel(talker), [("yes", tail)])[0]
    assert generate(model, [long], max_gen_toks=3) == generate(
        HarnessModel(talker), [talker.tokenizer.decode(talker.tokenizer.encode(long)[-5:])], max_gen_toks=3
    )
    assert model.truncated == {"a_task": 2}
    assert "longer than the context of 8 tokens" in capsys.readouterr().err
    assert json.loads(json.dumps(model.get_model_info()))["truncated_requests"] == {"a_task": 2}


def broken(talker):
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), talker.params)
    return dataclasses.replace(talker, params=params)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda lm: HarnessModel(dataclasses.replace(lm, tokenizer=None)), "no tokenizer"),
        (lambda lm: HarnessModel(lm).chat_template(True), "no chat template"),
        (lambda lm: HarnessModel(lm).apply_chat_template([{"role": "user", "content": "a"}]), "no chat template"),
        (lambda lm: score(HarnessModel(lm), [("a", " b"), ("a", "")]), "item 1 of the task a_task has no tokens"),
        (lambda lm: score(HarnessModel(lm, max_length=2), [("a", " yes no")]), "model's context is 2"),
        (
            lambda lm: score(HarnessModel(broken(lm)), [("a", " yes")]),
            "item 0 of the task a_task is not finite",
        ),
        (lambda lm: generate(HarnessModel(lm), ["a"], max_gen_toks=512), "asks for 512 new tokens"),
        (lambda lm: generate(HarnessModel(lm), ["a"], num_beams=4), "num_beams=4"),
        (lambda lm: generate(HarnessModel(lm), ["a"], do_sample=True), "without a temperature"),
        (lambda lm: SlmjaxModel(path="there", max_lenght=3), "did you mean 'max_length'"),
        (lambda lm: SlmjaxModel(batch_size=1, device="cuda:0"), "needs its path"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(talker, mistake, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        mistake(talker)


CHATTY = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
CHATTY += "{{ 'assistant:' if add_generation_prompt }}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATTY


def test_a_chat_template_is_rendered_chosen_by_name_and_spared_what_it_refuses(talker, capsys):
    named = [{"name": "default", "template": CHATTY}, {"name": "strict", "template": STRICT}]
    tokenizer = type(talker.tokenizer)(talker.tokenizer._backend, {"chat_template": named})
    model = HarnessModel(dataclasses.replace(talker, tokenizer=tokenizer))
    history = [{"role": "system", "content": "short"}, {"role": "user", "content": "a "}]
    assert model.chat_template(True) == CHATTY and model.chat_template(False) is None
    assert model.apply_chat_template(history) == "system: short\nuser: a\nassistant:"
    begun = [*history, {"role": "assistant", "content": "it is "}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == "system: short\nuser: a\nassistant: it is"
    assert model.chat_template("strict") == STRICT
    assert model.apply_chat_template(history) == "user: a\nassistant:"
    assert "system messages" in capsys.readouterr().err
    with pytest.raises(UserError, match="did you mean 'strict'"):
        model.chat_template("stric")
