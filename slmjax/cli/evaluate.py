"""`slmjax evaluate`: bits per byte of text beside baselines, and tasks."""

from __future__ import annotations

import argparse
from typing import Any

from slmjax.cli.shared.model_arguments import add_checkpoint_argument
from slmjax.cli.shared.option_types import whole_number
from slmjax.cli.shared.sampling_arguments import add_context_argument
from slmjax.cli.shared.text_sources import add_format_arguments, texts_of
from slmjax.quantities import json_text

HELP = "measure a model: bits per byte of text beside baselines, or tasks"
EXAMPLE = "slmjax evaluate --model runs/text2sql --tasks text2sql --data-dir text2sql_geography --output result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--model", required=True, help="run directory, checkpoint, model or adapter directory, .gguf file, or hub id"
    )
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter (default: the one that it names)")
    add_checkpoint_argument(parser)
    parser.add_argument("--text", nargs="+", help="files of held-out text (text, JSONL ...)")
    parser.add_argument("--baseline-text", nargs="+", help="files of text to train the unigram and n-gram baselines on")
    parser.add_argument(
        "--sequence-length", type=whole_number(0), default=0, help="context length in tokens (default: the model's)"
    )
    add_context_argument(parser)
    add_format_arguments(parser)
    parser.add_argument("--tasks", help="names of tasks, separated by commas: text2sql, pubmedqa")
    parser.add_argument("--data-dir", help="directory of the tasks' data")
    parser.add_argument(
        "--num-fewshot", type=whole_number(0), default=0, help="examples in each prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=whole_number(0), default=0, help="maximum number of questions per task (default: all)"
    )
    parser.add_argument("--output", help="file to write the results to as JSON, with every answer of a task")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from slmjax.cli.shared.table import print_table
    from slmjax.errors import UserError
    from slmjax.files import local_path

    output = None if args.output is None else local_path(args.output, "--output")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {output} cannot be written: there is no directory {output.parent}.")
    if bool(args.text) == bool(args.tasks):
        raise UserError("Give slmjax evaluate either --text FILE ..., or --tasks NAME,... with --data-dir DIR.")
    result = _text(args) if args.text else _tasks(args)
    if output is not None:
        output.write_text(json_text(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = {name: value for name, value in result.items() if not isinstance(value, dict)}
    for name, facts in result.items():
        if isinstance(facts, dict):
            numbers = {key: value for key, value in facts.items() if key not in ("task", "predictions")}
            shown |= {f"{name} {key.replace('_', ' ')}": value for key, value in numbers.items()}
            result[name] = numbers
    if args.json:
        print(json_text(result))
    else:
        print_table(shown)
    return 0


def _text(args: argparse.Namespace) -> dict[str, Any]:
    from slmjax.evaluation.baselines import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
    from slmjax.evaluation.bits_per_byte import evaluate_text
    from slmjax.formats.models import load

    texts = list(texts_of(args.text, args))
    heldout = "".join(texts).encode()
    lm = load(args.model, base=args.base, checkpoint=args.checkpoint).with_context(args.context)
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
    from slmjax.files import local_path
    from slmjax.formats.models import load

    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    check_tasks(names)
    if not args.data_dir or not local_path(args.data_dir, "--data-dir").is_dir():
        raise UserError(
            f"--tasks needs the directory of their data: give --data-dir DIR (there is none at {args.data_dir})."
        )
    lm = load(args.model, base=args.base, checkpoint=args.checkpoint).with_context(args.context)
    return evaluate_tasks(lm, names, args.data_dir, limit=args.limit, num_fewshot=args.num_fewshot)
