"""`slmjax evaluate`: bits per byte of text files, beside baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "measure bits per byte on text, beside gzip"
EXAMPLE = "slmjax evaluate --model runs/quickstart --text notes.txt --output result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", required=True, help="a run's workdir, one of its checkpoints, or a saved model")
    parser.add_argument(
        "--text", required=True, nargs="+", help="files (text, JSONL, Parquet ...), each one document or many"
    )
    parser.add_argument("--output", help="write the result here as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from slmjax.data.config import SourceConfig
    from slmjax.data.sources import read_documents
    from slmjax.errors import UserError
    from slmjax.evaluation.bits_per_byte import evaluate_text, gzip_bits_per_byte
    from slmjax.inference.language_model import load

    texts = [text for path in args.text for text in read_documents(SourceConfig(path))]
    lm = load(args.model)
    result = evaluate_text(lm, texts)
    result["gzip_bits_per_byte"] = gzip_bits_per_byte("".join(texts).encode())
    if args.output:
        try:
            Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{args.output} cannot be written: {error.strerror}.") from error
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<20}{value:>14,.4f}" if isinstance(value, float) else f"{name:<20}{value:>14,}")
    return 0
