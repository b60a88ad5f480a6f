"""`slmjax data prepare|inspect|records`: tokenize text once; look at what came of it; a task as training records."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmjax.cli.shared.option_types import real_number
from slmjax.cli.shared.text_sources import add_format_arguments, source_of
from slmjax.quantities import json_text

if TYPE_CHECKING:
    from slmjax.data.config import DataConfig

HELP = "tokenize text into a corpus, look at one, or write a task's records"
EXAMPLE = "slmjax data prepare --source books.jsonl.gz --tokenizer train:8192 --output corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="prepare|inspect|records")
    prepare = actions.add_parser(
        "prepare", help="tokenize text into OUTPUT/corpus", epilog=f"Example: {EXAMPLE}", allow_abbrev=False
    )
    prepare.add_argument("--config", help="config file whose data section is prepared")
    prepare.add_argument(
        "--source",
        action="append",
        default=[],
        help="text: a file, directory, glob, tfds:... or python:stdlib; may be given several times",
    )
    prepare.add_argument("--tokenizer", default="", help="path of a tokenizer, or train:SIZE to train one")
    prepare.add_argument(
        "--validation-fraction",
        type=real_number,
        default=0.01,
        help="share of the documents to hold out (default: %(default)s)",
    )
    prepare.add_argument(
        "--store-format",
        choices=["memmap", "array_record"],
        default="memmap",
        help="format of the stored token ids (default: %(default)s)",
    )
    add_format_arguments(prepare)
    prepare.add_argument(
        "--output", required=True, help="directory to write; train on it with data.cache_dir=OUTPUT/corpus"
    )
    inspect = actions.add_parser(
        "inspect", help="describe a corpus", epilog="Example: slmjax data inspect corpus/corpus", allow_abbrev=False
    )
    inspect.add_argument("directory", help="corpus, or one token store of it")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    records = actions.add_parser(
        "records",
        help="write a task's records to fine-tune on",
        epilog="Example: slmjax data records --task text2sql --data-dir text2sql_geography --output text2sql",
        allow_abbrev=False,
    )
    records.add_argument("--task", required=True, help="name of the task: text2sql or pubmedqa")
    records.add_argument("--data-dir", required=True, help="directory of the task's data")
    records.add_argument("--output", required=True, help="directory to write train.jsonl, test.jsonl ... into")


def run(args: argparse.Namespace) -> int:
    """Prepare, describe or write records."""
    return {"inspect": _inspect, "prepare": _prepare, "records": _records}[args.action](args)


def _records(args: argparse.Namespace) -> int:
    from slmjax.evaluation.tasks.registry import write_task_records
    from slmjax.files import local_path

    output = local_path(args.output, "--output")
    for split, (count, left_out) in write_task_records(args.task, args.data_dir, output).items():
        more = f", {len(left_out)} left out: {left_out[0]!r} ..." if left_out else ""
        print(f"{output / f'{split}.jsonl'}: {count:,} records{more}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from slmjax.data.prepare import prepare, tokenizer_for
    from slmjax.errors import UserError
    from slmjax.files import local_path

    if bool(args.config) == bool(args.source):
        raise UserError("Give slmjax data prepare either --config FILE, or --source PATH with --tokenizer.")
    data = _data_config(args)
    output = local_path(args.output, "--output")
    tokenizer = tokenizer_for(data, output / "tokenizer")
    print(prepare(data, tokenizer, output / "corpus"))
    return 0


def _data_config(args: argparse.Namespace) -> DataConfig:
    from slmjax.data.config import DataConfig
    from slmjax.errors import UserError

    if args.config:
        from slmjax.cli.shared.config_files import load_config
        from slmjax.recipes.config import run_config

        data = run_config(load_config(args.config, args.overrides)).data
        if not isinstance(data, DataConfig):
            raise UserError(
                f"{args.config} reads conversations, which slmjax train encodes itself: there is nothing to prepare."
            )
        return data
    # A source's name becomes a directory, and numbers keep equal names apart.
    names = [Path(path.partition("?")[0].partition(":")[2] or path).name.split(".")[0] for path in args.source]
    safe = ["".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in name) for name in names]
    return DataConfig(
        sources={f"{i:02}-{n or 'text'}": source_of(s, args) for i, (n, s) in enumerate(zip(safe, args.source))},  # noqa: B905
        tokenizer=args.tokenizer,
        validation_fraction=args.validation_fraction,
        store_format=args.store_format,
    )


def _inspect(args: argparse.Namespace) -> int:
    from slmjax.cli.shared.table import print_table
    from slmjax.data.describe import describe

    facts = describe(args.directory)
    if args.json:
        print(json_text(facts, ensure_ascii=False))
        return 0
    stores = {"": facts} if "documents" in facts else _by_path(facts)
    for path, store in stores.items():
        if path:
            print(path)
        lengths = store["document_tokens"]
        print_table(
            {
                "  documents": store["documents"],
                "  tokens": store["tokens"],
                "  bytes": store["bytes"],
                "  bytes a token": store["bytes_per_token"],
                "  vocabulary": store["vocab_size"],
                "  tokens a document": ", ".join(f"{length:,} ({p}%)" for p, length in lengths.items()),
            }
        )
        for sample in store["samples"]:
            print(f"  | {' '.join(sample.split())[:110]}")
    return 0


def _by_path(corpus: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{name}": store for split, stores in corpus.items() for name, store in stores.items()}
