"""`slmjax data prepare|inspect`: tokenize text once; look at what came of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "tokenize text into a corpus, or look at one"
EXAMPLE = "slmjax data prepare --source books.jsonl.gz --tokenizer train:8192 --output corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="prepare|inspect")
    prepare = actions.add_parser("prepare", help="tokenize text into OUTPUT/corpus", epilog=f"Example: {EXAMPLE}")
    prepare.add_argument("--config", help="take the data section of this config file")
    prepare.add_argument("--source", action="append", default=[], help="file, directory, glob, tfds:..., python:stdlib")
    prepare.add_argument("--tokenizer", default="", help="a tokenizer's path, or train:SIZE")
    prepare.add_argument("--validation-fraction", type=float, default=0.01)
    prepare.add_argument("--store-format", choices=["memmap", "array_record"], default="memmap")
    prepare.add_argument("--output", required=True, help="directory; use its corpus/ as data.cache_dir")
    inspect = actions.add_parser(
        "inspect", help="describe a corpus", epilog="Example: slmjax data inspect corpus/corpus"
    )
    inspect.add_argument("directory")


def run(args: argparse.Namespace) -> int:
    """Prepare or describe."""
    if args.action == "inspect":
        from slmjax.data.describe import describe

        print(json.dumps(describe(args.directory), indent=1, ensure_ascii=False))
        return 0
    from slmjax.data.config import DataConfig
    from slmjax.data.prepare import prepare, tokenizer_for
    from slmjax.errors import UserError

    if bool(args.config) == bool(args.source):
        raise UserError("data prepare needs either --config FILE or --source PATH with --tokenizer.")
    if args.config:
        from slmjax.cli.config_files import load_config
        from slmjax.training.config import run_config

        data = run_config(load_config(args.config, args.overrides)).data
    else:
        names = {
            f"{i:02}-{Path(s).name.split('.')[0] or 'source'}".replace(":", "-"): s for i, s in enumerate(args.source)
        }
        data = DataConfig(
            sources={_safe(name): {"path": path} for name, path in names.items()},  # type: ignore[misc]
            tokenizer=args.tokenizer,
            validation_fraction=args.validation_fraction,
            store_format=args.store_format,
        )
    output = Path(args.output)
    tokenizer = tokenizer_for(data, output / "tokenizer")
    print(prepare(data, tokenizer, output / "corpus"))
    return 0


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_.-" else "-" for c in name)
