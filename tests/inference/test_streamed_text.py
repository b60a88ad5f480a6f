"""What is streamed is what is returned, and that is what the whole text decodes to, for every decoder."""

import json
import random

import pytest
import tokenizers

from slmjax.formats.gguf.tokenizer import tokenizer_from, tokenizer_to
from slmjax.formats.gguf.tokenizer_json import KEY
from slmjax.inference.text import Continuation
from slmjax.tokenization.backends import HuggingFaceBackend, SentencePieceBackend
from slmjax.tokenization.tokenizer import Tokenizer, train_bpe
from tests.tokenizer_directories import SENTENCES, SPACE, fallback, sentencepiece_model, text

DECODERS = ["ByteLevel", "ByteFallback", "Metaspace", "WordPiece", "SentencePiece", "GGUF bytes", "GGUF pieces"]
BAD = "\ufffd"


def tokenizer_of(decoder: str) -> Tokenizer:
    """A small tokenizer that decodes in this manner."""
    if decoder in ("ByteLevel", "GGUF bytes"):
        tokenizer = train_bpe(SENTENCES * 3, 300, progress=False)
    elif decoder in ("ByteFallback", "GGUF pieces"):
        description = fallback(random.Random(3), None)
        tokenizer = Tokenizer(HuggingFaceBackend(tokenizers.Tokenizer.from_str(json.dumps(description))))
    elif decoder == "SentencePiece":
        return Tokenizer(SentencePieceBackend(sentencepiece_model(random.Random(1))))
    else:
        metaspace = decoder == "Metaspace"
        words = {
            word: id for id, word in enumerate(["[UNK]", *"abcdefghij ", "fox", "##es", "the", SPACE, f"{SPACE}the"])
        }
        model = tokenizers.models.BPE(words, []) if metaspace else tokenizers.models.WordPiece(words, unk_token="[UNK]")
        library = tokenizers.Tokenizer(model)
        library.decoder = tokenizers.decoders.Metaspace() if metaspace else tokenizers.decoders.WordPiece()
        return Tokenizer(HuggingFaceBackend(library))
    if decoder.startswith("GGUF"):
        keys = tokenizer_to(tokenizer, tokenizer.vocab_size)
        return tokenizer_from({key: value for key, value in keys.items() if key != KEY}, "here")
    return tokenizer


def ids_of(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Tokens of a text, or at random."""
    if rng.random() < 0.7 and (ids := tokenizer.encode(text(rng) + rng.choice(["", "깰뷁🦙", "日本é"]) + text(rng))):
        return ids
    return [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 20))]


def rest_of(tokenizer: Tokenizer, ids: list[int], split: int) -> str:
    """The text of all tokens without the whole characters of the first `split`, decoded at once."""
    whole = tokenizer.decode(ids)
    shown = (tokenizer.decode(ids[:end]).rstrip(BAD) for end in range(split, max(split - 4, -1), -1))
    return whole[max(len(text) for text in shown if BAD not in text and whole.startswith(text)) :]


@pytest.mark.parametrize("decoder", DECODERS)
def test_streamed_returned_and_whole_text_are_one(decoder):
    tokenizer = tokenizer_of(decoder)
    rng = random.Random(decoder)
    compared = 0
    for _ in range(150):
        ids = ids_of(tokenizer, rng)
        split = rng.randrange(len(ids) + 1)
        row = Continuation(tokenizer, ids[:split], ["never to come"] if rng.random() < 0.3 else [])
        pieces = [row.add(token) for token in ids[split:]]
        streamed = "".join(pieces) + row.end()
        assert streamed == row.whole(ids[split:]) == Continuation(tokenizer, ids[:split]).whole(ids[split:])
        if BAD not in tokenizer.decode(ids):
            assert not any(BAD in piece for piece in pieces)
            assert streamed == rest_of(tokenizer, ids, split), (ids, split)
            compared += bool(streamed)
    assert compared > 30


def test_a_long_run_of_bytes_before_the_answer_changes_nothing():
    tokenizer = tokenizer_of("ByteFallback")
    prompt = tokenizer.encode("x" + "깰뷁🦙" * 40)
    ids = tokenizer.encode("x" + "깰뷁🦙" * 40 + "깰 a🦙")
    assert Continuation(tokenizer, prompt).whole(ids[len(prompt) :]) == "깰 a🦙"


class Letters:
    """A tokenizer of letters with two special tokens."""

    names = {0: "<e>", 1: "<f>"}

    def special_tokens(self):
        return {name: id for id, name in self.names.items()}

    def decode(self, ids):
        return "".join(chr(id) for id in ids if id > 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_string_may_have_special_tokens_which_are_not_shown(seed):
    rng = random.Random(seed)
    for _ in range(200):
        ids = [rng.choice([0, 1, ord("a"), ord("b")]) for _ in range(rng.randrange(12))]
        stop = ["".join(rng.choice(["<e>", "<f>", "a", "b"]) for _ in range(rng.randrange(1, 4))) for _ in range(2)]
        names = [Letters.names.get(id, chr(id)) for id in ids]
        whole = "".join(names)
        ends = [n for n in range(len(names) + 1) for s in stop if "".join(names[:n]).endswith(s)]
        expected = "".join(names[: min(ends)]) if ends else whole
        if ends:
            expected = expected[: len(expected) - max(len(s) for s in stop if expected.endswith(s))]
        row = Continuation(Letters(), [ord("a")], stop)
        pieces = []
        for id in ids:
            pieces.append(row.add(id))
            if row.stopped:
                break
        assert row.stopped == bool(ends)
        assert "".join(pieces) + row.end() == row.whole(ids) == expected.replace("<e>", "").replace("<f>", "")
