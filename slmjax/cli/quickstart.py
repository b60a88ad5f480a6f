"""`slmjax quickstart`: from no data to a trained, evaluated, sampled and saved model in a few minutes, offline."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

HELP = "train a small language model on the text that every Python installation carries"
EXAMPLE = "slmjax quickstart --workdir runs/quickstart"
PROMPTS = ("def __init__(self", "The list is")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--workdir", default="runs/quickstart", help="where everything goes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="training steps (default: the config's)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prepare text, train a tokenizer and a model, evaluate against baselines, generate, save."""
    start = time.perf_counter()
    from slmjax.errors import UserError
    from slmjax.files import local_path
    from slmjax.recipes.quickstart_config import get_config
    from slmjax.training.config import run_config, set_budget
    from slmjax.training.loop import train

    workdir = local_path(args.workdir, "The workdir")
    config = get_config()
    if args.steps:
        set_budget(config, steps=args.steps)
        config.schedule.warmup_steps = max(1, min(config.schedule.warmup_steps, args.steps // 5))
    _say("Text: the documentation topics, docstrings and sources of this Python installation. No network is used.")
    result = train(run_config(config), workdir)
    if result.stopped_by is not None:
        return 130 if result.stopped_by == signal.SIGINT else 0
    if "validation_bits_per_byte" not in result.metrics:
        raise UserError(f"The finished run in {workdir} has lost its metrics.jsonl: choose another --workdir.")

    from slmjax.evaluation.bits_per_byte import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
    from slmjax.formats.models import load, save
    from slmjax.inference.generate import generate

    _say("\nHow good is that? The same held-out text under simpler models:")
    heldout, trained = _texts(workdir, "validation"), _texts(workdir, "train")
    lm = load(workdir)
    rows = {
        "gzip -9": gzip_bits_per_byte(heldout),
        "unigram over the same tokens": unigram_bits_per_byte(lm.require_tokenizer(), trained, heldout),
        "byte 5-gram": ngram_bits_per_byte(trained, heldout),
        "this model": float(result.metrics["validation_bits_per_byte"]),
    }
    report = {
        "steps": result.step,
        "bits_per_byte": {name: round(value, 4) for name, value in rows.items()},
        "heldout_bytes": len(heldout),
        "tokens_per_second": round(result.metrics.get("tokens_per_second", 0.0)),
    }
    if not args.json:
        for name, value in rows.items():
            print(f"  {name:<30}{value:6.3f} bits per byte")
        print("\nIt writes (temperature 0.7):")
    texts = generate(lm, list(PROMPTS), max_new_tokens=48, temperature=0.7, top_k=50, seed=1)
    if not args.json:
        for prompt, text in zip(PROMPTS, texts, strict=True):
            print("  | " + (prompt + text.removeprefix(prompt)).replace("\n", "\n  | "))
    save(lm, workdir / "model")
    report |= {
        "samples": texts,
        "model": str(workdir / "model"),
        "loss_curve": str(workdir / "loss.png"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if args.json:
        print(json.dumps(report))
    else:
        print(
            f"\nLoss curve: {workdir / 'loss.png'}   metrics: {workdir / 'metrics.jsonl'}   model: {workdir / 'model'}"
        )
        print(f"Done in {report['seconds']:.0f} s. Next: slmjax generate --model {workdir} --prompt 'import '")
    return 0


def _texts(workdir: Path, split: str) -> bytes:
    """The text of one split, decoded from the prepared corpus: what the model was trained on or measured with."""
    from slmjax.data.prepare import open_stores
    from slmjax.tokenization.tokenizer import load_tokenizer

    corpus = workdir / "data" / "corpus"
    tokenizer = load_tokenizer(corpus / "tokenizer")
    texts = []
    for store in open_stores(corpus, split).values():  # type: ignore[arg-type]
        texts += [tokenizer.decode(store.document(i)) for i in range(store.num_documents)]
    return "".join(texts).encode()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
