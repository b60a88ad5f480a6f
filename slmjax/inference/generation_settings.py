"""The settings of generation_config.json: kept as they are written, and used where a caller gives none of his own.

A model's `generation` holds what the file says beyond what its tokenizer and stop ids say already, so that a model
that was made here has none, and one that was read is written again as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmjax.inference.sampling import Sampling, sampling_from
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.untrusted import Values, inside, read_json, require_bounded

FILE_NAME = "generation_config.json"
TOP_K = 50  # transformers' where tokens are drawn and the file says nothing
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Settings that change what a model writes and are not done here, with the value that leaves it as it is.
_NOT_DONE: dict[str, Any] = {"num_beams": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0}
_NOT_DONE |= {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0}
_NOT_DONE |= {"penalty_alpha": None, "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None}
_NOT_DONE |= {"begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None}
_NOT_DONE |= {"guidance_scale": 1.0, "dola_layers": None, "min_length": 0, "min_new_tokens": 0, "top_h": None}


def read_settings(directory: Path, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that a directory's generation_config.json says; its ids, where it says none, as config.json has them."""
    values = read_json(inside(directory, FILE_NAME)) if (directory / FILE_NAME).exists() else {}
    require_bounded(values, "generation", str(directory / FILE_NAME))
    given = {key: value for key, value in values.items() if value is not None or key not in _IDS}
    return {key: config[key] for key in _IDS if config and config.get(key) is not None} | given


def stop_ids_from(settings: Mapping[str, Any], tokenizer: Tokenizer | None, vocab_size: int) -> tuple[int, ...]:
    """The ids that end a text: those of `eos_token_id`, one or several, and the tokenizer's own."""
    named = settings.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    known = [id for id in ids if type(id) is int and 0 <= id < vocab_size]
    eos = None if tokenizer is None else tokenizer.eos_id
    return tuple(dict.fromkeys([*known, *([] if eos is None else [eos])]))


def without_known(settings: Mapping[str, Any], tokenizer: Tokenizer | None, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The settings without ids that the tokenizer and the stop ids say; None for one that they alone would say."""
    known = _ids_of(tokenizer, stop_ids)
    kept = {key: value for key, value in settings.items() if key not in _IDS or value != known[key]}
    return kept | {key: None for key in _IDS if key not in settings and known[key] is not None}


def with_known(
    settings: Mapping[str, Any], tokenizer: Tokenizer | None, stop_ids: Sequence[int], vocab_size: int
) -> dict[str, Any]:
    """The inverse of `without_known`: all that a file says of a model with this tokenizer, ending at `stop_ids`."""
    known = _ids_of(tokenizer, stop_ids)
    values = {**known, **settings}
    ends = dict.fromkeys([*stop_ids, *([] if tokenizer is None or tokenizer.eos_id is None else [tokenizer.eos_id])])
    if stop_ids_from(values, tokenizer, vocab_size) != tuple(ends):
        values["eos_token_id"] = known["eos_token_id"]
    return values


def ids_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ids among the settings, as config.json repeats them."""
    return {key: settings.get(key) for key in _IDS}


def _ids_of(tokenizer: Tokenizer | None, stop_ids: Sequence[int]) -> dict[str, Any]:
    roles = {role: getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}
    stops = list(dict.fromkeys([*stop_ids, *([] if roles["eos"] is None else [roles["eos"]])]))
    eos = stops[0] if len(stops) == 1 else stops or None
    return {"bos_token_id": roles["bos"], "eos_token_id": eos, "pad_token_id": roles["pad"]}


def default_sampling(settings: Mapping[str, Any], sampling: Sampling | None = None, **given: float | None) -> Sampling:
    """The drawing of tokens by `sampling` or single settings, whichever is given, else as the model's, else greedily.

    As in transformers: without `do_sample` the most likely token is taken, and with it the temperature is 1 and top_k
    is 50 where the file says nothing. A temperature that is given decides whether tokens are drawn at all.

    Raises:
        UserError: a setting that is no number, or out of its range; `sampling` and single settings at once.
    """
    if sampling is not None:
        return sampling_from(sampling, **given)
    typed = Values(settings, f"The model's {FILE_NAME}")
    drawn = typed.flag("do_sample")
    ours = {
        "temperature": typed.number("temperature", 1.0) if drawn else 0.0,
        "top_k": typed.integer("top_k", TOP_K if drawn else 0),
        "top_p": typed.number("top_p", 1.0),
        "min_p": typed.number("min_p", 0.0),
        "repetition_penalty": typed.number("repetition_penalty", 1.0),
    }
    _warn_of_others(settings)
    return Sampling(**(ours | {name: value for name, value in given.items() if value is not None}))  # type: ignore[arg-type]


def default_stop(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The strings at which the model's text ends (`stop_strings`), none where it has none."""
    stop = settings.get("stop_strings")
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(text for text in Values(settings, f"The model's {FILE_NAME}").names("stop_strings", []) if text)


def default_length(settings: Mapping[str, Any], otherwise: int, room: int) -> int:
    """Tokens to draw where the caller does not say: the model's `max_new_tokens`, at most `room`, else `otherwise`."""
    wanted = Values(settings, f"The model's {FILE_NAME}").integer("max_new_tokens", None, least=1)
    return otherwise if wanted is None else max(1, min(wanted, room))


def _warn_of_others(settings: Mapping[str, Any]) -> None:
    odd = [name for name, plain in _NOT_DONE.items() if settings.get(name) not in (None, plain, [], {}, False)]
    if odd:
        shown = ", ".join(f"{name}={str(settings[name])[:40]}" for name in odd[:3])
        warnings.warn(f"The model's {FILE_NAME} asks for {shown}, which is not done here.", stacklevel=4)
