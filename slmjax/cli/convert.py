"""`slmjax convert`: from any model to a directory or file of any format."""

from __future__ import annotations

import argparse

HELP = "write a model's weights in another format or dtype"
EXAMPLE = "slmjax convert runs/quickstart my-model --format huggingface --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", help="a run's workdir, a checkpoint, a model's directory, a .gguf file, or a hub id")
    parser.add_argument("destination", help="a new directory (a file for gguf), or a model of the format to replace")
    formats = ["slmjax", "huggingface", "gguf"]
    parser.add_argument("--format", choices=formats, default="slmjax", help="of the destination (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"],
        metavar="DTYPE",
        help="float32 or bfloat16; huggingface also float16; gguf also q8_0, q5_1, q5_0, q4_1, q4_0 "
        "(default: float32, the source's for huggingface, float16 for gguf)",
    )


def run(args: argparse.Namespace) -> int:
    """Load, save, say where."""
    from slmjax.formats.dispatch import load, save

    print(save(load(args.source), args.destination, format=args.format, dtype=args.dtype))
    return 0
