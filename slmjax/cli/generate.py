"""`slmjax generate`: continue prompts."""

from __future__ import annotations

import argparse
import json

HELP = "continue one or more prompts with a model"
EXAMPLE = "slmjax generate --model runs/quickstart --prompt 'def main(' --temperature 0.7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", required=True, help="a run's workdir, one of its checkpoints, or a saved model")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token (default)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k most likely tokens (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the most likely tokens of this total")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt")


def run(args: argparse.Namespace) -> int:
    """Print each prompt with its continuation; a single one as it grows."""
    from slmjax.inference.generate import generate
    from slmjax.inference.language_model import load

    lm = load(args.model)
    streaming = len(args.prompt) == 1 and not args.json
    begun = False

    def show(piece: str) -> None:
        nonlocal begun
        if not begun:  # only now: a refused prompt prints nothing
            print(args.prompt[0], end="")
            begun = True
        print(piece, end="", flush=True)

    texts = generate(
        lm,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        stream=show if streaming else None,
    )
    if streaming:
        print("" if begun else args.prompt[0])
        return 0
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(json.dumps({"prompt": prompt, "text": text}) if args.json else f"{prompt}{text}\n")
    return 0
