"""A conversation: the template's words, and a cache that changes nothing but the time."""

import dataclasses

import pytest

from slmjax.errors import UserError
from slmjax.inference import chat as module
from slmjax.inference.chat import Conversation, pieces
from slmjax.inference.generate import generate_ids
from slmjax.tokenization.chat_template import ChatTemplate
from slmjax.tokenization.chat_tokens import encode_messages

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
LINES = ["the old river", "walks", "under the light of a stone"]


@pytest.fixture
def talker(lm, monkeypatch):
    monkeypatch.setitem(lm.tokenizer.settings, "chat_template", TEMPLATE)
    monkeypatch.setattr(module, "CHUNKS", (4, 16))
    return lm


@pytest.mark.slow
def test_a_conversation_outgrows_longropes_short_factors(talker, stretched):
    conversation = Conversation(stretched, max_new_tokens=20)
    lengths = []
    for line in [*LINES, *LINES]:
        if len(lengths) == 5:  # what a reset leaves is short again
            conversation.reset()
        asked = [*conversation.messages, {"role": "user", "content": line}]
        template = ChatTemplate.of(stretched.tokenizer)
        ids = encode_messages(stretched.tokenizer, template, asked, add_generation_prompt=True)
        new = generate_ids(stretched, [ids], max_new_tokens=20, stop_ids=[stretched.tokenizer.eos_id])[0]
        assert conversation.answer(line) == stretched.tokenizer.decode(new), lengths
        lengths.append((len(ids), len(ids) + len(new)))
    switch = 70
    assert any(before <= switch < after for before, after in lengths), lengths  # within an answer
    assert any(before > switch for before, _ in lengths), lengths
    assert lengths[-1][1] < switch, lengths


def test_answers_are_those_of_the_whole_prompt_each_time(talker, monkeypatch):
    run = []
    monkeypatch.setattr(module, "extend", lambda *a, extend=module.extend: (run.append(a[4]), extend(*a))[1])
    conversation = Conversation(talker, system="be brief", max_new_tokens=6)
    messages = [{"role": "system", "content": "be brief"}]
    for line in LINES:
        del run[:]
        messages.append({"role": "user", "content": line})
        template = ChatTemplate.of(talker.tokenizer)
        ids = encode_messages(talker.tokenizer, template, messages, add_generation_prompt=True)
        new = generate_ids(talker, [ids], max_new_tokens=6, stop_ids=[talker.tokenizer.eos_id])[0]
        pieces: list[str] = []
        answer = conversation.answer(line, pieces.append)
        assert answer == "".join(pieces) == talker.tokenizer.decode(new)
        messages.append({"role": "assistant", "content": answer})
        assert conversation.messages == messages
        assert sum(run) < len(ids) or len(messages) == 3  # the history was not run again


def test_after_a_reset_the_first_answer_comes_again(talker):
    conversation = Conversation(talker, max_new_tokens=6)
    first = [conversation.answer(line) for line in LINES[:2]]
    conversation.reset()
    assert [conversation.answer(line) for line in LINES[:2]] == first


def test_an_answer_ends_when_told_and_what_there_is_of_it_is_history(talker):
    whole = Conversation(talker, max_new_tokens=20).answer(LINES[0])
    conversation = Conversation(talker, max_new_tokens=20)
    answer = conversation.answer(LINES[0], lambda piece: True)
    assert whole.startswith(answer) and answer != whole
    assert conversation.messages[-1] == {"role": "assistant", "content": answer}
    conversation.answer(LINES[1])


def test_a_stop_string_ends_an_answer(talker):
    whole = Conversation(talker, max_new_tokens=20).answer(LINES[0])
    stop = whole[4:6]
    assert Conversation(talker, max_new_tokens=20, stop=[stop]).answer(LINES[0]) == whole[: whole.index(stop)]


def test_a_full_context_is_told_and_leaves_the_history_alone(talker):
    conversation = Conversation(talker, max_new_tokens=4, context=40)
    conversation.answer("a")
    before = list(conversation.messages)
    with pytest.raises(UserError, match="context is 40"):
        conversation.answer("long " * 20)
    assert conversation.messages == before
    conversation.answer("b")


def test_a_model_without_a_template_is_refused(lm):
    with pytest.raises(UserError, match="no chat template"):
        Conversation(dataclasses.replace(lm))


@pytest.mark.parametrize("n", [1, 3, 256, 257, 700])
def test_pieces_are_the_whole(n):
    cut = pieces(range(n))
    assert [i for piece in cut for i in piece] == list(range(n))
    assert all(0 < len(piece) <= module.CHUNKS[-1] for piece in cut)
