"""What minutes of fuzzing found (`fuzz_readers.py`): each file is read or refused in a sentence, at once."""

import time

import pytest

from tests.formats.fuzz_readers import CORPUS, SECONDS, answer

FILES = sorted(CORPUS.iterdir())


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_found_file_is_read_or_refused(path):
    start = time.monotonic()
    assert answer(path)
    assert time.monotonic() - start < SECONDS


def test_both_readers_gave_many_answers():
    """The fuzzer got past the first check of each reader."""
    for suffix in (".gguf", ".safetensors"):
        assert len({answer(path) for path in FILES if path.suffix == suffix}) >= 8
