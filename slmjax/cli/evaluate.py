"""`slmjax evaluate`: bits per byte of text, beside baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from slmjax.cli.text_sources import add_format_arguments, texts_of

HELP = "measure bits per byte on text, beside gzip and other baselines"
EXAMPLE = "slmjax evaluate --model runs/quickstart --text notes.txt --output result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", required=True, help="a run's workdir, one of its checkpoints, or a saved model")
    parser.add_argument("--text", required=True, nargs="+", help="text that the model has not seen (text, JSONL ...)")
    parser.add_argument("--baseline-text", nargs="+", help="text to train the unigram and n-gram baselines on")
    parser.add_argument("--sequence-length", type=int, default=0, help="tokens of context (default: the model's)")
    add_format_arguments(parser)
    parser.add_argument("--output", help="write the result here as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from slmjax.cli.table import print_table
    from slmjax.errors import UserError
    from slmjax.evaluation.baselines import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
    from slmjax.evaluation.bits_per_byte import evaluate_text
    from slmjax.formats.dispatch import load

    output = None if args.output is None else Path(args.output).expanduser()
    if output is not None and not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no directory {output.parent}.")
    texts = list(texts_of(args.text, args))
    heldout = "".join(texts).encode()
    lm = load(args.model)
    result = evaluate_text(lm, texts, sequence_length=args.sequence_length)
    result["gzip_bits_per_byte"] = gzip_bits_per_byte(heldout)
    if args.baseline_text:
        train = "".join(texts_of(args.baseline_text, args)).encode()
        result["unigram_bits_per_byte"] = unigram_bits_per_byte(lm.tokenizer, train, heldout)
        result["ngram_bits_per_byte"] = ngram_bits_per_byte(train, heldout)
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)
    return 0
