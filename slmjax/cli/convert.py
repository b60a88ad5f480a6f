"""`slmjax convert`: from any model to a directory or file of any format; what a fine-tune adds, also by itself."""

from __future__ import annotations

import argparse

HELP = "write a model's weights in another format or dtype"
ADAPTERS = ("peft", "adapterhub")
EXAMPLE = "slmjax convert runs/quickstart my-model --format huggingface --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "source", help="a run's workdir, a checkpoint, a model's or adapter's directory, a .gguf file, or a hub id"
    )
    parser.add_argument("destination", help="a new directory (a file for gguf), or a model of the format to replace")
    formats = ["slmjax", "huggingface", "gguf", *ADAPTERS]
    parser.add_argument(
        "--format",
        choices=formats,
        default="slmjax",
        metavar="FORMAT",
        help="slmjax, huggingface or gguf for a model, peft or adapterhub for a fine-tune without its base "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="where an adapter's base is (default: where it says); of a run written as peft or adapterhub, what is "
        "written as its base",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"],
        metavar="DTYPE",
        help="float32, bfloat16 or float16; gguf also q8_0, q5_1, q5_0, q4_1, q4_0 "
        "(default: the source's own, float16 for gguf)",
    )


def run(args: argparse.Namespace) -> int:
    """Load, save, say where."""
    from slmjax.formats.models import convert

    print(convert(args.source, args.destination, format=args.format, dtype=args.dtype, base=args.base))
    return 0
