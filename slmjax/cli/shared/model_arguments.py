"""Options of the commands that load a model."""

from __future__ import annotations

import argparse


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        metavar="best|latest|STEP",
        help="checkpoint of a run to load (default: best after early stopping, else latest)",
    )
