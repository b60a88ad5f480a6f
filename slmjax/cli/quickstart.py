"""`slmjax quickstart`: train, evaluate, sample and save a small model on Python's own text."""

from __future__ import annotations

import argparse
import signal

from slmjax.cli.shared.option_types import not_empty, whole_number
from slmjax.quantities import json_text

HELP = "train a small language model on the text that every Python installation carries"
EXAMPLE = "slmjax quickstart --workdir runs/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--workdir", type=not_empty, default="runs/quickstart", help="directory of the run (default: %(default)s)"
    )
    parser.add_argument("--steps", type=whole_number(0), default=0, help="training steps (default: the config's)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the quickstart and print its report; status 0 when done or saved after SIGTERM, 130 after Ctrl-C."""
    from slmjax.recipes.quickstart import quickstart

    report = quickstart(args.workdir, steps=args.steps)
    if report.stopped_by is not None:
        return 130 if report.stopped_by == signal.SIGINT else 0
    if args.json:
        values = {
            "steps": report.steps,
            "bits_per_byte": {name: round(value, 4) for name, value in report.bits_per_byte.items()},
            "heldout_bytes": report.heldout_bytes,
            "tokens_per_second": round(report.tokens_per_second),
            "samples": report.samples,
            "model": str(report.model),
            "loss_curve": str(report.loss_curve),
            "seconds": round(report.seconds, 1),
        }
        print(json_text(values))
        return 0
    for name, value in report.bits_per_byte.items():
        print(f"  {name:<30}{value:6.3f} bits per byte")
    print("\nIt writes (temperature 0.7):")
    for prompt, text in zip(report.prompts, report.samples, strict=True):
        print("  | " + (prompt + text.removeprefix(prompt)).replace("\n", "\n  | "))
    print(f"\nLoss curve: {report.loss_curve}   metrics: {report.metrics}   model: {report.model}")
    print(f"Done in {report.seconds:.0f} s. Next: slmjax generate --model {args.workdir} --prompt 'import '")
    return 0
