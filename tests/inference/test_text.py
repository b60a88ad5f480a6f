"""A row's text as it grows: whole characters, and nothing lost or said twice."""

from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.inference.text import Continuation, encode_prompt


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=12), text=st.text(max_size=30))
def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer, prompt, text):
    ids = tokenizer.encode(text)
    row = Continuation(tokenizer, encode_prompt(tokenizer, prompt))
    pieces = [row.add(token) for token in ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + row.end() == text == row.whole(ids)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text("ab日 ", max_size=24), stop=st.lists(st.text("ab日", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_a_row_ends_exactly_before_the_stop_string_that_is_whole_first(tokenizer, text, stop):
    row = Continuation(tokenizer, tokenizer.encode("b"), stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(row.add(token))
        if row.stopped:
            break
    end = next((n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)), len(text))
    expected = text[: end - max((len(s) for s in stop if text[:end].endswith(s)), default=0)]
    assert "".join(pieces) + row.end() == row.whole(tokenizer.encode(text)) == expected
    assert row.stopped == (expected != text)


def test_what_may_begin_a_stop_string_waits(tokenizer):
    row = Continuation(tokenizer, tokenizer.encode("x"), ["END", "NO"])
    pieces = [row.add(token) for letter in "aEN" for token in tokenizer.encode(letter)]
    assert pieces == ["a", "", ""]
    assert row.add(tokenizer.encode("b")[0]) == "ENb" and not row.stopped


def test_a_character_that_the_prompt_began_is_completed(tokenizer):
    ids = tokenizer.encode("日")
    assert len(ids) > 1
    assert Continuation(tokenizer, ids[:1]).whole(ids[1:]) == "日"


def test_bytes_that_are_no_text_are_shown_in_the_end(tokenizer):
    first = tokenizer.encode("日")[0]
    row = Continuation(tokenizer, tokenizer.encode("a"))
    assert row.add(first) == "" and row.end() == "\ufffd"
    endless = Continuation(tokenizer, tokenizer.encode("a"))
    assert any(endless.add(first) for _ in range(20))


def test_sentencepiece_keeps_the_space_between_prompt_and_continuation():
    class Words:  # decodes as SentencePiece does: the first piece loses its space
        def decode(self, ids):
            return "".join([" once", " upon", " a"][id] for id in ids).removeprefix(" ")

    assert Continuation(Words(), [0]).whole([1, 2]) == " upon a"
