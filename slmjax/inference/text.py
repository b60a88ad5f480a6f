"""Conversion of prompts to token ids, and of a row's growing ids to its text."""

from __future__ import annotations

from collections.abc import Sequence

from slmjax.tokenization.tokenizer import Tokenizer

_CONTEXT = 8  # tokens of the prompt that the first new ones are decoded with
_LONGEST_CHARACTER = 4  # tokens that one may have, of a byte each
_PENDING = 8  # tokens after which incomplete characters are shown as they are: no character is longer


def starts_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether texts begin with the bos token in what the model was trained on."""
    return tokenizer.bos_id is not None and tokenizer.settings.get("add_bos_token") is True


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, special: bool = True) -> list[int]:
    """Token ids of a prompt, with the bos token before it where the model was trained so.

    An empty prompt is the bos token, else the eos token, else nothing. special: whether the strings of special tokens
    in it, such as `<|im_start|>`, are these tokens, as in transformers; else they are text, as in outside text they
    should be.
    """
    begin = tokenizer.begin_ids or ((tokenizer.bos_id,) if starts_with_bos(tokenizer) else ())
    ids = tokenizer.encode(prompt, allow_special=special)
    if not ids and not begin:
        begin = (tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id,)
    return [id for id in begin if id is not None] + ids


def special_tokens_in(tokenizer: Tokenizer, text: str) -> list[str]:
    """The special tokens whose strings are in a text, in its order."""
    found = {text.find(token): token for token in tokenizer.special_tokens() if token and token in text}
    return [found[at] for at in sorted(found)]


class Continuation:
    """The text of one row's continuation, as it grows and as a whole, up to the first `stop` string to be complete.

    Tokens are decoded together with those before them: alone they may lack the space that they begin with
    (SentencePiece), and a character may span several (byte-level BPE, bytes for rare characters). Special tokens are
    not shown, but a stop string may have them in it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self.stopped = False  # a stop string has come
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._special = {id: token for token, id in tokenizer.special_tokens().items()} if stop else {}
        self._ids = list(prompt)
        self._start = self._read = len(prompt)  # decoded up to
        self._context = self._context_of_prompt()  # decoded from
        self._text, self._shown = "", 0  # without what follows a stop string; characters of it that were given out
        self._hidden: list[tuple[int, int]] = []  # where special tokens stand in it

    def add(self, token: int) -> str:
        """Add a token; returns the text that it completes: whole characters that cannot begin a stop string."""
        if self.stopped:
            return ""
        if token in self._special:
            shown = self._show(self._piece())
            self._ids.append(token)
            self._read = len(self._ids)
            return shown if self.stopped else shown + self._show(self._special[token], hidden=True)
        self._ids.append(token)
        piece = self._piece()
        if not piece or (piece.endswith("\ufffd") and len(self._ids) - self._read < _PENDING):
            return ""
        self._context, self._read = self._context_after(piece), len(self._ids)
        return self._show(piece)

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
        return self._visible(0, len(self._text))

    def _context_of_prompt(self) -> int:
        """Where to decode the prompt from: at least a few tokens, which show text and do not begin inside a character.

        A decoder may give up all bytes of a run that begins inside a character, or take a space off what comes first.
        """
        size = _CONTEXT
        while (start := len(self._ids) - size) > 0:
            text = self._tokenizer.decode(self._ids[start:])
            if text.strip() and not text.startswith("\ufffd"):
                return start
            size *= 2
        return 0

    def _context_after(self, piece: str) -> int:
        """Where to decode what follows a piece from: its first token, unless that completes a character."""
        text = self._tokenizer.decode(self._ids[self._read :])
        return self._context if text.startswith("\ufffd") and not piece.startswith("\ufffd") else self._read

    def _piece(self) -> str:
        """The text of the tokens that were not decoded yet."""
        if self._read == len(self._ids):
            return ""
        before = self._tokenizer.decode(self._ids[self._context : self._read])
        text = self._tokenizer.decode(self._ids[self._context :])
        if not text.startswith(before):  # the prompt ended inside a character, which is now complete
            ends = range(self._read, max(self._context, self._read - _LONGEST_CHARACTER), -1)
            shorter = (self._tokenizer.decode(self._ids[self._context : end]).rstrip("\ufffd") for end in ends)
            before = max(filter(text.startswith, shorter), key=len, default="")
        return text[len(before) :]

    def _show(self, piece: str, *, hidden: bool = False, last: bool = False) -> str:
        if hidden:
            self._hidden.append((len(self._text), len(self._text) + len(piece)))
        self._text += piece
        # What was shown begins no stop string, so none can begin in it.
        found = [(at + len(s), at) for s in self._stop if (at := self._text.find(s, self._shown)) >= 0]
        if found:
            self.stopped, self._text = True, self._text[: min(found)[1]]
        until = len(self._text) if self.stopped or last else len(self._text) - self._held_back()
        shown, self._shown = self._visible(self._shown, until), until
        return shown

    def _visible(self, begin: int, end: int) -> str:
        """A part of the text without its special tokens."""
        shown = ""
        for start, stop in self._hidden:
            shown += self._text[begin : min(start, end)] if begin < start else ""
            begin = max(begin, stop)
        return shown + self._text[begin:end]

    def _held_back(self) -> int:
        """Characters at the end of the text with which a stop string may begin."""
        longest = 0
        for stop in self._stop:
            for n in range(min(len(stop) - 1, len(self._text) - self._shown), longest, -1):
                if self._text.endswith(stop[:n]):
                    longest = n
                    break
        return longest
