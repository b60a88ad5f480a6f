"""Options of the commands that sample tokens."""

from __future__ import annotations

import argparse
from typing import Any

from slmjax.cli.shared.option_types import real_number, whole_number


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--temperature` and its kin, `--seed` and `--stop`."""
    parser.add_argument(
        "--temperature",
        type=real_number,
        help="sampling temperature; 0 takes the most likely token (default: the model's, else 0)",
    )
    parser.add_argument(
        "--top-k", type=whole_number(0), help="sample from the k most likely tokens (default: the model's, else 0, all)"
    )
    parser.add_argument(
        "--top-p",
        type=real_number,
        help="sample from the fewest tokens whose probabilities sum to P (default: the model's, else 1, all)",
    )
    parser.add_argument(
        "--min-p",
        type=real_number,
        help="sample from tokens at least P times as likely as the best (default: the model's, else 0, all)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=real_number,
        help="penalty on tokens that occur already, above 1 (default: the model's, else 1, none)",
    )
    parser.add_argument("--seed", type=whole_number(), default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="text or special token, such as '<|im_end|>', to stop before; may be given several times",
    )


def add_context_argument(parser: argparse.ArgumentParser, default: str = "the model's") -> None:
    """Add `--context`; default: what holds without it, for the help."""
    parser.add_argument(
        "--context",
        type=whole_number(1),
        metavar="TOKENS",
        help=f"context length in tokens, prompt included (default: {default})",
    )


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `Sampling` by name, None where the model decides."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {name: getattr(args, name) for name in names}
