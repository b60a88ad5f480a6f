"""`slmjax evaluate`: bits per byte of text beside baselines, and tasks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from slmjax.cli.shared.text_sources import add_format_arguments, texts_of

HELP = "measure a model: bits per byte of text beside baselines, or tasks"
EXAMPLE = "slmjax evaluate --model runs/text2sql --tasks text2sql --data-dir text2sql_geography --output result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", required=True, help="a run's workdir, one of its checkpoints, or a saved model")
    parser.add_argument("--text", nargs="+", help="text that the model has not seen (text, JSONL ...)")
    parser.add_argument("--baseline-text", nargs="+", help="text to train the unigram and n-gram baselines on")
    parser.add_argument("--sequence-length", type=int, default=0, help="tokens of context (default: the model's)")
    add_format_arguments(parser)
    parser.add_argument("--tasks", help="names, with commas between: text2sql, pubmedqa")
    parser.add_argument("--data-dir", help="where the tasks' data lie")
    parser.add_argument("--num-fewshot", type=int, default=0, help="examples in each prompt (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many questions of each task")
    parser.add_argument("--output", help="write the result, the tasks' with every answer, here as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from slmjax.cli.shared.table import print_table
    from slmjax.errors import UserError

    output = None if args.output is None else Path(args.output).expanduser()
    if output is not None and not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no directory {output.parent}.")
    if bool(args.text) == bool(args.tasks):
        raise UserError("evaluate needs either --text FILE ..., or --tasks NAME,... with --data-dir DIR.")
    result = _text(args) if args.text else _tasks(args)
    if output is not None:
        output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = {name: value for name, value in result.items() if not isinstance(value, dict)}
    for name, facts in result.items():
        if isinstance(facts, dict):
            numbers = {key: value for key, value in facts.items() if key not in ("task", "predictions")}
            shown |= {f"{name} {key.replace('_', ' ')}": value for key, value in numbers.items()}
            result[name] = numbers
    if args.json:
        print(json.dumps(result))
    else:
        print_table(shown)
    return 0


def _text(args: argparse.Namespace) -> dict[str, Any]:
    from slmjax.evaluation.baselines import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
    from slmjax.evaluation.bits_per_byte import evaluate_text
    from slmjax.formats.models import load

    texts = list(texts_of(args.text, args))
    heldout = "".join(texts).encode()
    lm = load(args.model)
    result: dict[str, Any] = evaluate_text(lm, texts, sequence_length=args.sequence_length)
    result["gzip_bits_per_byte"] = gzip_bits_per_byte(heldout)
    if args.baseline_text:
        train = "".join(texts_of(args.baseline_text, args)).encode()
        result["unigram_bits_per_byte"] = unigram_bits_per_byte(lm.require_tokenizer(), train, heldout)
        result["ngram_bits_per_byte"] = ngram_bits_per_byte(train, heldout)
    return result


def _tasks(args: argparse.Namespace) -> dict[str, Any]:
    from slmjax.errors import UserError
    from slmjax.evaluation.tasks.registry import check_tasks, evaluate_tasks
    from slmjax.formats.models import load

    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    check_tasks(names)
    if not args.data_dir or not Path(args.data_dir).expanduser().is_dir():
        raise UserError(f"--tasks needs --data-dir, the directory of their data; {args.data_dir} is none.")
    lm = load(args.model)
    return evaluate_tasks(lm, names, args.data_dir, limit=args.limit, num_fewshot=args.num_fewshot)
