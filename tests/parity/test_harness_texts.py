"""Odd texts, stop strings and settings: the tokens, numbers and texts of lm-evaluation-harness's own class."""

import json

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install slmjax[eval])")
pytest.importorskip("transformers", reason="parity with transformers needs it (pip install slmjax[parity])")

from lm_eval.api.instance import Instance

from tests.parity import harness_pair as pair

SPECIAL = ["<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<unk>"]
CONTEXTS = [
    "",
    " ",
    "A",
    "The lamp ",
    "The lamp\n\n",
    "\n\tthe mill",
    "caf\u00e9 \u2014 \u65e5\u672c",
    "two  spaces",
    "x" * 30,
]
CONTEXTS += [f"{token}The river" for token in SPECIAL] + [f"one{token}two {token}\n" for token in SPECIAL]
CONTINUATIONS = [" light", "light", "\n", " ", " </s>", "\u672c \U0001f999", "<|im_end|>\n"]
PAIRS = [(context, tail) for n, context in enumerate(CONTEXTS) for tail in (CONTINUATIONS * 2)[n % 5 : n % 5 + 3]]


def instances(kind, arguments):
    return [Instance(kind, {}, args, 0, metadata=("odd", n, 1)) for n, args in enumerate(arguments)]


def both(theirs, ours, kind, arguments):
    """The answers of both sides to the same requests."""
    return [getattr(lm, kind)(instances(kind, arguments), disable_tqdm=True) for lm in (theirs, ours)]


def has_tokens(lm, context, tail):
    """Whether the harness can score a pair: it stops where a continuation has no token, or nothing stands before it."""
    if not context:
        return bool(lm.tok_encode(tail, add_special_tokens=False)[lm.prefix_token_id in lm.tok_encode(tail)[:1] :])
    before, after = lm._encode_pair(context, tail)
    return bool(before) and bool(after)


@pytest.mark.slow
@pytest.mark.parametrize("add_bos", [None, False, True])
@pytest.mark.parametrize("name", list(pair.MODELS))
def test_odd_texts_have_the_harness_tokens_and_numbers(tmp_path, name, add_bos):
    folder = pair.make_directory(name, tmp_path / "model")
    theirs, ours = (side(folder, add_bos_token=add_bos) for side in (pair.Theirs, pair.Ours))
    pairs = [args for args in PAIRS if has_tokens(theirs, *args)]
    assert len(pairs) > len(PAIRS) / 2
    for their, our in zip(*both(theirs, ours, "loglikelihood", pairs), strict=True):
        assert our == (pytest.approx(their[0], abs=1e-4), their[1])
    texts = [(context + tail,) for context, tail in pairs]
    for their, our in zip(*both(theirs, ours, "loglikelihood_rolling", texts), strict=True):
        assert our == pytest.approx(their, rel=1e-5)
    assert ours.scored == theirs.scored


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentencepiece", "no bos", "adds bos"])
def test_texts_end_where_the_harness_ends_them(tmp_path, name):
    """At pieces of what the model writes, one stop string after another, and with its repetition penalty."""
    folder = pair.make_directory(name, tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "repetition_penalty": 1.3}))
    theirs, ours = pair.Theirs(folder), pair.Ours(folder)
    prompts = [context for context in CONTEXTS if context.strip()][::2]
    settings = {"max_gen_toks": 10}
    free, ours_free = both(theirs, ours, "generate_until", [(prompt, settings) for prompt in prompts])
    assert ours_free == free
    stops = [[text[3:5], text[1:6]] for text in free if len(text) > 6][:3] + [SPECIAL[1:4]]
    asked = [(prompt, {**settings, "until": until}) for until in stops for prompt in prompts]
    their, our = both(theirs, ours, "generate_until", asked)
    assert our == their
    assert sum(len(text) for text in their) < len(stops) * sum(map(len, free))
    assert sorted(ours.prompts) == sorted(theirs.prompts)


HISTORIES = [
    [("user", "What is it? ")],
    [("system", " Be brief.\n"), ("user", "One"), ("assistant", " two\n"), ("user", " three")],
    [("user", "One"), ("assistant", "The answer is ")],
    [("system", "Short."), ("user", "One"), ("assistant", "The answer is\n")],
    [("user", "One"), ("assistant", "One")],
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no bos", "adds bos"])
def test_conversations_are_rendered_as_the_harness_renders_them(tmp_path, name):
    """Up to where the assistant begins, or goes on with what it has begun; a template may refuse system messages."""
    folder = pair.make_directory(name, tmp_path / "model")
    theirs, ours = pair.Theirs(folder), pair.Ours(folder)
    assert ours.chat_template(True) == theirs.chat_template(True)
    for history in HISTORIES:
        messages = [{"role": role, "content": content} for role, content in history]
        expected = theirs.apply_chat_template([dict(m) for m in messages], add_generation_prompt=True)
        assert ours.apply_chat_template(messages, add_generation_prompt=True) == expected
        if messages[-1]["role"] == "assistant":
            begun = theirs.apply_chat_template([dict(m) for m in messages], add_generation_prompt=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=False) == begun
            assert ours.tok_encode(begun) == theirs.tok_encode(begun)
