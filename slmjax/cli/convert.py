"""`slmjax convert`: from any model to a directory or file of any format; what a fine-tune adds, also by itself."""

from __future__ import annotations

import argparse

HELP = "write a model's weights in another format or dtype"
# Those of slmjax.formats.models.FORMATS that can be written; a test compares them, for the help must not import jax.
FORMATS = ("slmjax", "huggingface", "gguf", "peft", "adapterhub")
DTYPES = ("float32", "bfloat16", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
EXAMPLE = "slmjax convert runs/quickstart my-model --format huggingface --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", help="run directory, checkpoint, model or adapter directory, .gguf file, or hub id")
    parser.add_argument("destination", help="new directory (for gguf a file), or a model of the same format to replace")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="slmjax",
        metavar="FORMAT",
        help="format to write: slmjax, huggingface or gguf for a model, peft or adapterhub for a fine-tune without its "
        "base (default: %(default)s)",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="base model of an adapter (default: the one that it names); for a run written as peft or adapterhub, the "
        "name to write as its base",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="DTYPE",
        help="dtype of the weights: float32, bfloat16 or float16; gguf also q8_0, q5_1, q5_0, q4_1, q4_0 "
        "(default: the source's, float16 for gguf)",
    )


def run(args: argparse.Namespace) -> int:
    """Load the source, write the destination, and print where it is."""
    from slmjax.formats.models import convert

    print(convert(args.source, args.destination, format=args.format, dtype=args.dtype, base=args.base))
    return 0
