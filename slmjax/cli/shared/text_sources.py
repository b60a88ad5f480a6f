"""Options of the commands that read text, and the documents that they name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmjax.data.config import SourceConfig

FORMATS = ("auto", "text", "jsonl", "csv", "parquet", "arrow", "array_record")


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--format`, `--text-field` and `--split`."""
    parser.add_argument(
        "--format", choices=FORMATS, default="auto", help="format of the files (default: auto, by their names)"
    )
    parser.add_argument(
        "--text-field",
        default="text",
        help="field of records that is the text, or its path, as in meta.text (default: %(default)s)",
    )
    parser.add_argument(
        "--split", default="", help="splits of a dataset's directory to read, as in train+validation[:10%%]"
    )


def source_of(path: str, args: argparse.Namespace) -> SourceConfig:
    """The source at a path of the command line."""
    from slmjax.data.config import SourceConfig

    return SourceConfig(path, format=args.format, text_field=args.text_field, split=args.split)


def texts_of(paths: list[str], args: argparse.Namespace) -> Iterator[str]:
    """The documents of the paths, in order. UserError at once for what is no path."""
    from slmjax.data.sources import read_documents

    sources = [source_of(path, args) for path in paths]
    return (text for source in sources for text in read_documents(source))
