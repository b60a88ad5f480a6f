"""From prompts to token ids, and from a row's growing ids to its text."""

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
    """The text of one row's continuation, as it grows and as a whole.

    Tokens are decoded together with those before them: alone they may lack the space that they begin with
    (SentencePiece), and a character may span several (byte-level BPE).
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._start = len(prompt)
        self._context, self._shown = max(0, len(prompt) - _CONTEXT), len(prompt)  # decoded from; shown up to
        self._text = ""

    def add(self, token: int) -> str:
        """What the token adds to the text; nothing while a character is incomplete."""
        self._ids.append(token)
        piece = self._piece()
        if not piece or (piece.endswith("\ufffd") and len(self._ids) - self._shown < _PENDING):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        self._text += piece
        return piece

    def end(self) -> str:
        """What is left, were it an incomplete character."""
        piece = self._piece()
        self._shown = len(self._ids)
        self._text += piece
        return piece

    def whole(self, output: Sequence[int]) -> str:
        """The text of all of the row's tokens; what was shown of them before stays as it was."""
        for token in output[len(self._ids) - self._start :]:
            self.add(token)
        self.end()
        return self._text

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        text = self._tokenizer.decode(self._ids[self._context :])
        if not text.startswith(before):  # the prompt ended inside a character, which is now complete
            before = before.rstrip("\ufffd")
        return text[len(before) :]
