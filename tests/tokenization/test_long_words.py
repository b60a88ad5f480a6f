"""Training a tokenizer takes time in proportion to the text, whatever its words, and ordinary words are left whole."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.tokenization.long_words import LONGEST, cut_long_words
from slmjax.tokenization.tokenizer import _SPLIT, train_bpe

PARTS = st.sampled_from(["a", "é", "汉", "-", "_", "\x1c", "\u0301", " ", "\n", "\t", "7", "½", "x1", "word "])


def _longest_word(text: str) -> int:
    import tokenizers

    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated")
    return max((len(word) for word, _ in split.pre_tokenize_str(text)), default=0)


@given(st.lists(st.tuples(PARTS, st.integers(1, 1500)), max_size=4))
@settings(deadline=None, max_examples=30)
def test_pieces_join_to_the_text_and_no_word_in_them_is_long(parts):
    text = "".join(part * count for part, count in parts)
    pieces = list(cut_long_words([text]))
    assert "".join(pieces) == text
    assert max(map(_longest_word, pieces), default=0) <= 2 * LONGEST  # a word of signs may end with empty lines
    if sum(len(part) * count for part, count in parts) <= LONGEST:
        assert pieces == [text]


def test_texts_of_ordinary_words_are_given_as_they_are():
    texts = ["", "one", "The quick brown fox, 12345 times.\n\n" * 2000, "| --- | " * 3000, "x" * LONGEST]
    assert all(given is text for given, text in zip(cut_long_words(texts), texts, strict=True))


@pytest.mark.parametrize("alphabet", ["ACGT", "ACGTacgt0123456789+/", "=-", "汉字语言", " \t"])
def test_training_takes_time_in_proportion_to_the_text(alphabet):
    draw = random.Random(0)
    text = "".join(draw.choices(alphabet, k=60_000))

    def seconds(texts) -> float:
        begin = time.process_time()
        train_bpe(texts, 300, progress=False)
        return time.process_time() - begin

    in_parts = seconds([text[i : i + 500] for i in range(0, len(text), 500)])
    assert seconds([text]) < 4 * in_parts + 0.2  # one word of 60,000 characters takes tens of times as long uncut
