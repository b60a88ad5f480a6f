"""`slmjax interpolate`: losses over the weights between a base and its fine-tune, and the mix that is wanted."""

from __future__ import annotations

import argparse

from slmjax.cli.shared.option_types import whole_number
from slmjax.quantities import json_text

HELP = "mix a fine-tuned run with its base (WiSE-FT): a curve of what is gained and forgotten, and the mix to keep"
EXAMPLE = "slmjax interpolate runs/alpaca --points 0,0.5,1 --output runs/alpaca/curve --save 0.5 alpaca-half"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("run_path", metavar="RUN", help="run directory of a fine-tune, or one of its checkpoints")
    parser.add_argument(
        "--against", default="", help="general text: a file, glob or python:stdlib (default: the run's)"
    )
    parser.add_argument(
        "--points", default="0,0.25,0.5,0.75,1", help="weights of the fine-tuned network (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=whole_number(0), default=0, help="tokens of general text to measure (default: the run's)"
    )
    parser.add_argument("--output", help="path without ending for OUTPUT.json and .png (default: RUN/interpolation)")
    parser.add_argument("--save", nargs=2, metavar=("WEIGHT", "DIR"), help="weight of a mix to save, and its directory")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and draw the curve, save the mix that is wanted, and print what was measured."""
    from slmjax.recipes.interpolation import interpolate

    points = [_weight(text) for text in args.points.split(",")]
    save_as = (_weight(args.save[0]), args.save[1]) if args.save else None
    report = interpolate(
        args.run_path, points=points, against=args.against, tokens=args.tokens, output=args.output, save_as=save_as
    )
    if args.json:
        print(json_text(report))
        return 0
    results = report["points"]
    names = [name for name in ("validation_loss", "general_loss") if name in results[0]]
    print("weight" + "".join(f"{name.replace('_', ' '):>18}" for name in names))
    for point in results:
        print(f"{point['weight']:6.3f}" + "".join(f"{point[name]:18.4f}" for name in names))
    curve = report["plot"].removesuffix(".png")
    print(f"See {curve}.png and {curve}.json." + (f" Saved {save_as[0]:g} in {save_as[1]}." if save_as else ""))
    return 0


def _weight(text: str) -> float:
    from slmjax.errors import UserError

    try:
        return float(text)
    except ValueError:
        raise UserError(f"The weight {text!r} must be a number from 0 (the base) to 1 (the fine-tune).") from None
