"""Words without end (DNA, base64, rulers, scripts that write no spaces), cut before a vocabulary is trained on them.

The library counts the pairs in a word in time quadratic in its length. A cut changes which pairs are counted at that
place alone, and nothing but words of more than `LONGEST` characters is cut.
"""

import re
from collections.abc import Iterable, Iterator

LONGEST = 1000  # characters

# The runs that the pre-tokenizer of training makes words of: letters, signs, white space. Numbers have three digits.
_RUNS = tuple(map(re.compile, (r"[^\W\d_]+", r"(?:[^\w\s]|[_\x1c-\x1f])+", r"\s+")))


def cut_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, those with longer words in pieces in which no word has more than `LONGEST` characters."""
    for text in texts:
        begin = 0
        for start, stop in _long_runs(text):
            for end in range(start + LONGEST, stop, LONGEST):
                yield text[begin:end]
                begin = end
        yield text[begin:] if begin else text


def _long_runs(text: str) -> Iterator[tuple[int, int]]:
    """Where the runs of more than `LONGEST` characters begin and end.

    Each of them holds one of the places that are looked at, and only what lies around these is read.
    """
    end = 0
    for place in range(0, len(text), LONGEST):
        if place < end:
            continue
        for run in _RUNS:
            if (after := run.match(text, place)) is not None:
                before = run.match(text[max(end, place - LONGEST) : place][::-1])
                start, end = place - (before.end() if before else 0), after.end()
                if end - start > LONGEST:
                    yield start, end
                break
