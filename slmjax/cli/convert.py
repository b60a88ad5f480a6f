"""`slmjax convert`: from a run or checkpoint to a directory with the weights alone."""

from __future__ import annotations

import argparse

HELP = "write a run's or checkpoint's weights as a model directory"
EXAMPLE = "slmjax convert runs/quickstart my-model --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", help="a run's workdir, a checkpoint, or a saved model")
    parser.add_argument("destination", help="a new directory, or a saved model to replace")
    parser.add_argument("--format", choices=["slmjax"], default="slmjax", help="of the destination")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Load, save, say where."""
    from slmjax.inference.language_model import load, save

    print(save(load(args.source), args.destination, dtype=args.dtype))
    return 0
