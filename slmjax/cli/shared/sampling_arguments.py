"""What the commands that draw tokens share."""

from __future__ import annotations

import argparse
from typing import Any


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """`--temperature` and its kin, `--seed` and `--stop`."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token (default)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k most likely tokens (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the most likely tokens of this total")
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="draw from tokens this likely beside the best (0: all)"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: tokens that were used come less"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; several may be given"
    )


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `Sampling`, by name."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {name: getattr(args, name) for name in names}
