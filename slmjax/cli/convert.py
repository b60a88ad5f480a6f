"""`slmjax convert`: from any model to a directory or file of any format; what a fine-tune adds, also by itself."""

from __future__ import annotations

import argparse

HELP = "write a model's weights in another format or dtype"
ADAPTERS = ("peft", "adapterhub")
EXAMPLE = "slmjax convert runs/quickstart my-model --format huggingface --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", help="run directory, checkpoint, model or adapter directory, .gguf file, or hub id")
    parser.add_argument("destination", help="new directory (for gguf a file), or a model of the same format to replace")
    formats = ["slmjax", "huggingface", "gguf", *ADAPTERS]
    parser.add_argument(
        "--format",
        choices=formats,
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
        choices=["float32", "bfloat16", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"],
        metavar="DTYPE",
        help="dtype of the weights: float32 or bfloat16; huggingface also float16; gguf also q8_0, q5_1, q5_0, q4_1, "
        "q4_0 (default: float32, the source's for huggingface, float16 for gguf)",
    )


def run(args: argparse.Namespace) -> int:
    """Load the source, write the destination, and print where it is."""
    from slmjax.errors import UserError
    from slmjax.formats.models import convert_adapter, load, save

    if args.format in ADAPTERS:
        if args.dtype not in (None, "float32"):
            raise UserError(f"--dtype {args.dtype}: an adapter is written in float32, as peft itself writes it.")
        print(convert_adapter(args.source, args.destination, format=args.format, base=args.base))
    else:
        lm = load(args.source, base=args.base)
        print(save(lm, args.destination, format=args.format, dtype=args.dtype))
    return 0
