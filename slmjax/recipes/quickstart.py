"""The quickstart: from no data to a trained, evaluated, sampled and saved model in a few minutes, offline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slmjax.console import say as say_on_stderr
from slmjax.data.prepare import open_stores
from slmjax.errors import UserError
from slmjax.evaluation.baselines import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
from slmjax.files import local_path
from slmjax.formats.models import load, save
from slmjax.inference.generate import generate
from slmjax.recipes.config import set_budget
from slmjax.recipes.quickstart_config import get_config
from slmjax.recipes.train import train
from slmjax.tokenization.tokenizer import load_tokenizer
from slmjax.training.workdir_lock import hold

PROMPTS = ("def __init__(self", "The list is")


@dataclass(frozen=True)
class QuickstartReport:
    """The results of a quickstart.

    Attributes:
        steps: training steps that were done.
        stopped_by: the signal that stopped the run early (nothing below is filled in then), or None.
        bits_per_byte: of the held-out text, by what was measured: gzip, unigram, n-gram, this model.
        heldout_bytes: length of the held-out text, in bytes of UTF-8.
        tokens_per_second: of training.
        prompts, samples: texts that were continued, and their continuations.
        model, loss_curve, metrics: where the saved model, the picture and the numbers of the run are.
        seconds: all of it, compilation included.
    """

    steps: int
    stopped_by: int | None
    bits_per_byte: dict[str, float]
    heldout_bytes: int
    tokens_per_second: float
    prompts: tuple[str, ...]
    samples: tuple[str, ...]
    model: Path
    loss_curve: Path
    metrics: Path
    seconds: float


def quickstart(
    workdir: str | Path = "runs/quickstart", *, steps: int = 0, say: Callable[[str], None] = say_on_stderr
) -> QuickstartReport:
    """Train a tokenizer and a small Llama on Python's own text, compare it with baselines, sample from it and save it.

    A run that the workdir already holds is continued. steps: of training; 0 for the config's.

    Raises:
        UserError: the workdir is in use, or holds another run, or a finished one without its metrics.
    """
    workdir = local_path(workdir, "The workdir")
    with hold(workdir):
        return _quickstart(workdir, steps, say)


def _quickstart(workdir: Path, steps: int, say: Callable[[str], None]) -> QuickstartReport:
    start = time.perf_counter()
    config = get_config()
    if steps:
        set_budget(config, steps=steps)
        config.schedule.warmup_steps = max(1, min(config.schedule.warmup_steps, steps // 5))
    say("Text: the documentation topics, docstrings and sources of this Python installation. No network is used.")
    result = train(config, workdir)
    rows: dict[str, float] = {}
    heldout = b""
    samples: Sequence[str] = ()
    if result.stopped_by is None:
        if "validation_bits_per_byte" not in result.metrics:
            raise UserError(f"The finished run in {workdir} has lost its metrics.jsonl: choose another --workdir.")
        say("\nHow good is that? The same held-out text is measured under simpler models.")
        heldout, trained = _text(workdir, "validation"), _text(workdir, "train")
        lm = load(workdir)
        rows = {
            "gzip -9": gzip_bits_per_byte(heldout),
            "unigram over the same tokens": unigram_bits_per_byte(lm.require_tokenizer(), trained, heldout),
            "byte 5-gram": ngram_bits_per_byte(trained, heldout),
            "this model": float(result.metrics["validation_bits_per_byte"]),
        }
        samples = generate(lm, list(PROMPTS), max_new_tokens=48, temperature=0.7, top_k=50, seed=1)
        save(lm, workdir / "model")
    return QuickstartReport(
        steps=result.step,
        stopped_by=result.stopped_by,
        bits_per_byte=rows,
        heldout_bytes=len(heldout),
        tokens_per_second=result.metrics.get("tokens_per_second", 0.0),
        prompts=PROMPTS,
        samples=tuple(samples),
        model=workdir / "model",
        loss_curve=workdir / "loss.png",
        metrics=workdir / "metrics.jsonl",
        seconds=time.perf_counter() - start,
    )


def _text(workdir: Path, split: Literal["train", "validation"]) -> bytes:
    """The text of one split, decoded from the prepared corpus: what the model was trained on or measured with."""
    corpus = workdir / "data" / "corpus"
    tokenizer = load_tokenizer(corpus / "tokenizer", as_saved=True)
    texts = []
    for store in open_stores(corpus, split).values():
        texts += [tokenizer.decode(store.document(i)) for i in range(store.num_documents)]
    return "".join(texts).encode()
