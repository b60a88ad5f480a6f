"""Settings of a task's generations, and their texts cut, as lm-evaluation-harness's `hf` class has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmjax.errors import UserError
from slmjax.inference.generation_settings import default_sampling
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.sampling import Sampling
from slmjax.tokenization.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256  # where a task does not say
_DRAWING = ("top_k", "top_p", "min_p")
_WITHOUT_EFFECT: dict[str, Any] = {"num_beams": 1, "use_cache": True}  # as they are here
_LOOK_BACK = 2  # tokens more than a stop string has, in which it is looked for


@dataclass(frozen=True)
class Asked:
    """The settings of a generation, of which equal ones are generated together.

    Attributes:
        max_new_tokens: at most so many.
        sampling: how tokens are drawn.
        until: strings at which the text ends, in the order in which it is cut.
    """

    max_new_tokens: int
    sampling: Sampling
    until: tuple[str, ...]


def read_settings(settings: Mapping[str, Any], lm: LanguageModel, task: str | None) -> Asked:
    """A request's generation_kwargs, with the model's generation_config.json where they say nothing.

    Greedy unless `do_sample` is true or a temperature above 0 is given. As transformers does, a repetition penalty of
    the model's generation_config.json counts also where the most likely token is taken.

    Raises:
        UserError: a setting that is not known here, or tokens drawn at the temperature 0.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    values: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS))
    until = [str(stop) for stop in values.pop("until") if stop is not None]
    max_new_tokens, drawn = values.pop("max_gen_toks"), bool(values.pop("do_sample", False))
    temperature = float(values.pop("temperature", 0.0))
    penalty = values.pop("repetition_penalty", None)
    given = {name: values.pop(name, None) for name in _DRAWING}
    others = [f"{key}={value}" for key, value in values.items() if _WITHOUT_EFFECT.get(key) != value]
    if others:
        raise UserError(
            f"The task {task} asks for a generation with {', '.join(others)}, which is not done here: leave it out of "
            "generation_kwargs."
        )
    if drawn and not temperature:
        raise UserError(
            f"The task {task} asks for tokens to be drawn (do_sample) without a temperature: give temperature=1.0 in "
            "generation_kwargs, or do_sample=False."
        )
    sampling = default_sampling(
        {**lm.generation, "do_sample": drawn},
        temperature=temperature,
        repetition_penalty=penalty,
        **(given if drawn else {}),
    )
    return Asked(max_new_tokens, sampling, tuple(until))


class StopStrings:
    """The strings at which a generated text ends, the model's end-of-text token among them."""

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str], *, think_end: str | int | None = None):
        eos = None if tokenizer.eos_id is None else tokenizer.decode([tokenizer.eos_id], keep_special=True)
        self._tokenizer = tokenizer
        self._until = [*until, *([eos] if eos and eos not in until else [])]
        self._spans = [len(tokenizer.encode(s, allow_special=True)) + _LOOK_BACK for s in self._until]
        self._think_end = think_end

    def cut(self, ids: Sequence[int]) -> str:
        """The text of a continuation's tokens, up to its first stop string.

        Tokens after the one that completes a stop string are left out first, since a special token can be a stop string
        and is not in the text. The text is then cut at each string in turn.
        """
        ids = ids[: self._first_stop(ids)]
        if isinstance(self._think_end, int) and self._think_end in ids:
            ids = ids[len(ids) - list(reversed(ids)).index(self._think_end) :]
        text = self._tokenizer.decode(ids)
        if isinstance(self._think_end, int):
            text = text.lstrip()
        elif self._think_end:
            text = text.split(self._think_end)[-1].lstrip()
        for stop in self._until:
            text = text.split(stop)[0] if stop else text
        return text

    def _first_stop(self, ids: Sequence[int]) -> int:
        """How many tokens there are when a stop string is first among the last ones."""
        whole = self._tokenizer.decode(ids, keep_special=True)
        present = [(s, span) for s, span in zip(self._until, self._spans, strict=True) if s and s in whole]
        for end in range(1, len(ids) + 1 if present else 0):
            for stop, span in present:
                if stop in self._tokenizer.decode(ids[max(0, end - span) : end], keep_special=True):
                    return end
        return len(ids)
