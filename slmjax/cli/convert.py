"""`slmjax convert`: from any model to a directory or file of any format; what a fine-tune adds, also by itself."""

from __future__ import annotations

import argparse

from slmjax.cli.shared.model_arguments import add_checkpoint_argument
from slmjax.formats.catalog import BLOCKS, FLOATS, SLMJAX, WRITTEN

HELP = "write a model's weights in another format or dtype"
EXAMPLE = "slmjax convert runs/quickstart my-model --format huggingface --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", help="run directory, checkpoint, model or adapter directory, .gguf file, or hub id")
    parser.add_argument("destination", help="new directory (for gguf a file), or a model of the same format to replace")
    parser.add_argument(
        "--format",
        choices=[format.name for format in WRITTEN],
        metavar="FORMAT",
        help=f"format to write: {'; '.join(f'{f.name}, {f.help}' for f in WRITTEN)} (default: gguf for a "
        f"destination that ends with .gguf, else {SLMJAX.name})",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="base model of an adapter (default: the one that it names); for a run written as peft or adapterhub, the "
        "name to write as its base",
    )
    add_checkpoint_argument(parser)
    models = [format for format in WRITTEN if format.dtypes]
    parser.add_argument(
        "--dtype",
        choices=[*FLOATS, *BLOCKS],
        metavar="DTYPE",
        help=f"dtype of the weights: {', '.join(FLOATS)}; for gguf also {', '.join(BLOCKS)} (default: "
        f"{', '.join(f'{f.default_dtype} for {f.name}' for f in models)})",
    )


def run(args: argparse.Namespace) -> int:
    """Load the source, write the destination, and print where it is."""
    from slmjax.formats.models import convert

    print(
        convert(
            args.source,
            args.destination,
            format=args.format,
            dtype=args.dtype,
            base=args.base,
            checkpoint=args.checkpoint,
        )
    )
    return 0
