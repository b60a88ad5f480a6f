"""`slmjax interpolate`: losses over the weights between a base and its fine-tune, and the mix that is wanted."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

HELP = "mix a fine-tuned run with its base (WiSE-FT): a curve of what is gained and forgotten, and the mix to keep"
EXAMPLE = "slmjax interpolate runs/alpaca --points 0,0.5,1 --output runs/alpaca/curve --save 0.5 alpaca-half"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run_path", metavar="RUN", help="the workdir of a fine-tune, or one of its checkpoints")
    parser.add_argument("--against", help="general text: a file, glob or python:stdlib (default: the run's)")
    parser.add_argument(
        "--points", default="0,0.25,0.5,0.75,1", help="weights of the fine-tuned network (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=0, help="of general text that are measured (default: the run's)")
    parser.add_argument("--output", help="write OUTPUT.json and OUTPUT.png (default: RUN/interpolation)")
    parser.add_argument("--save", nargs=2, metavar=("WEIGHT", "DIR"), help="write the model of one weight here")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, print and draw the curve; save what is wanted."""
    from slmjax.errors import UserError
    from slmjax.formats.models import load, save
    from slmjax.formats.runs import open_run
    from slmjax.recipes.corpus import open_corpus, open_general
    from slmjax.recipes.finetuned import expanded
    from slmjax.recipes.forgetting_config import ForgettingConfig
    from slmjax.recipes.interpolation import curve, mixed
    from slmjax.training.config import run_config
    from slmjax.training.reporting.plots import plot_interpolation
    from slmjax.untrusted import read_json

    points = [_weight(text) for text in args.points.split(",")]
    weight = _weight(args.save[0]) if args.save else 0.0
    place = open_run(args.run_path)
    if not place.description.peft.base:
        raise UserError(f"{args.run_path} is no fine-tune: there is no base to mix it with.")
    config = run_config(read_json(place.directory / "config.json"))
    output = Path(args.output).expanduser() if args.output else place.directory / "interpolation"
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no directory {output.parent}.")
    wanted = config.forgetting
    corpus_path = args.against or wanted.corpus or ForgettingConfig.corpus
    tokens = args.tokens or wanted.tokens or ForgettingConfig.tokens
    config = dataclasses.replace(config, forgetting=dataclasses.replace(wanted, corpus=corpus_path, tokens=tokens))

    tuned = load(args.run_path, dtype="float32")
    base = load(config.peft.base, dtype="float32")
    base_params = expanded(config, base.params)[1]
    corpus = open_corpus(config.data, place.directory / "data", tokenizer=tuned.tokenizer)
    # Elsewhere than the run's own general text, unless it is that.
    folder = "general" if corpus_path == wanted.corpus else "general-interpolation"
    text = open_general(config, place.directory / "data" / folder, tuned.require_tokenizer())
    rows = text.measured_rows(config.data.sequence_length, tokens)
    results = curve(
        config,
        base_params,
        tuned.params,
        points,
        corpus=corpus,
        general=rows,
        say=lambda message: print(message, file=sys.stderr, flush=True),
    )
    report = {"run": args.run_path, "base": config.peft.base, "general": corpus_path, "tokens": tokens}
    output.with_name(output.name + ".json").write_text(json.dumps(report | {"points": results}, indent=1) + "\n")
    plot_interpolation(results, output.with_name(output.name + ".png"), title=f"{args.run_path} and its base")
    if args.save:
        params = mixed(base_params, tuned.params, weight)
        save(dataclasses.replace(tuned, params=params), args.save[1])
    if args.json:
        print(json.dumps(report | {"points": results}))
    else:
        names = [name for name in ("validation_loss", "general_loss") if name in results[0]]
        print("weight" + "".join(f"{name.replace('_', ' '):>18}" for name in names))
        for point in results:
            print(f"{point['weight']:6.3f}" + "".join(f"{point[name]:18.4f}" for name in names))
        print(f"See {output}.png and {output}.json." + (f" Saved {weight:g} in {args.save[1]}." if args.save else ""))
    return 0


def _weight(text: str) -> float:
    from slmjax.errors import UserError

    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise UserError(f"The weight {text!r} must be a number from 0 (the base) to 1 (the fine-tuned network).")
    return weight
