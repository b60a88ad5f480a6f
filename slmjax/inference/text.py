"""Conversion of prompts to token ids, and of a row's growing ids to its text."""

from __future__ import annotations

from collections.abc import Sequence

from slmjax.tokenization.tokenizer import Tokenizer

_CONTEXT = 8  # tokens of the prompt that the first new ones are decoded with
_PENDING = 8  # tokens after which incomplete characters are shown as they are: no character is longer


def starts_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether texts begin with the bos token in what the model was trained on."""
    return tokenizer.bos_id is not None and tokenizer.settings.get("add_bos_token") is True


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt, with the bos token before it where the model was trained so.

    An empty prompt is the bos token, else the eos token, else nothing.
    """
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    ids = tokenizer.encode(prompt)
    return [start, *ids] if start is not None and (not ids or starts_with_bos(tokenizer)) else ids


class Continuation:
    """The text of one row's continuation, as it grows and as a whole, up to the first `stop` string to be complete.

    Tokens are decoded together with those before them: alone they may lack the space that they begin with
    (SentencePiece), and a character may span several (byte-level BPE).
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self.stopped = False  # a stop string has come
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids = list(prompt)
        self._start = len(prompt)
        self._context, self._read = max(0, len(prompt) - _CONTEXT), len(prompt)  # decoded from; decoded up to
        self._text, self._shown = "", 0  # without what follows a stop string; characters of it that were given out

    def add(self, token: int) -> str:
        """Add a token; returns the text that it completes: whole characters that cannot begin a stop string."""
        if self.stopped:
            return ""
        self._ids.append(token)
        piece = self._piece()
        if not piece or (piece.endswith("\ufffd") and len(self._ids) - self._read < _PENDING):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._show(piece, last=False)

    def end(self) -> str:
        """Return what is left: an incomplete character, or the beginning of a stop string that did not come."""
        piece = "" if self.stopped else self._piece()
        self._read = len(self._ids)
        return self._show(piece, last=True)

    def whole(self, output: Sequence[int]) -> str:
        """The text of all of the row's tokens; what was shown of them before stays as it was."""
        for token in output[len(self._ids) - self._start :]:
            self.add(token)
        self.end()
        return self._text

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._read])
        text = self._tokenizer.decode(self._ids[self._context :])
        if not text.startswith(before):  # the prompt ended inside a character, which is now complete
            before = before.rstrip("\ufffd")
        return text[len(before) :]

    def _show(self, piece: str, *, last: bool) -> str:
        self._text += piece
        # What was shown begins no stop string, so none can begin in it.
        found = [(at + len(s), at) for s in self._stop if (at := self._text.find(s, self._shown)) >= 0]
        if found:
            self.stopped, self._text = True, self._text[: min(found)[1]]
        until = len(self._text) if self.stopped or last else len(self._text) - self._held_back()
        shown, self._shown = self._text[self._shown : until], until
        return shown

    def _held_back(self) -> int:
        """Characters at the end of the text with which a stop string may begin."""
        longest = 0
        for stop in self._stop:
            for n in range(min(len(stop) - 1, len(self._text) - self._shown), longest, -1):
                if self._text.endswith(stop[:n]):
                    longest = n
                    break
        return longest
