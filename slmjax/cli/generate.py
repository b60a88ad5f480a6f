"""`slmjax generate`: continue prompts."""

from __future__ import annotations

import argparse
import json

from slmjax.cli.shared.model_arguments import add_checkpoint_argument
from slmjax.cli.shared.option_types import whole_number
from slmjax.cli.shared.sampling_arguments import add_context_argument, add_sampling_arguments, sampling_settings
from slmjax.console import say
from slmjax.errors import first_few

HELP = "continue one or more prompts with a model"
EXAMPLE = "slmjax generate --model runs/quickstart --prompt 'def main(' --temperature 0.7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--model", required=True, help="run directory, checkpoint, model or adapter directory, .gguf file, or hub id"
    )
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter (default: the one that it names)")
    add_checkpoint_argument(parser)
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument(
        "--max-new-tokens", type=whole_number(1), help="maximum tokens per prompt (default: the model's, else 64)"
    )
    add_context_argument(parser, "the model's, as its rope's scaling extends it")
    parser.add_argument(
        "--special", action="store_true", help="read special tokens in the prompts, such as <|im_start|>, as tokens"
    )
    add_sampling_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per prompt")


def run(args: argparse.Namespace) -> int:
    """Print each prompt with its continuation, a single one as it grows."""
    from slmjax.formats.models import load
    from slmjax.inference.generate import generate
    from slmjax.inference.text import special_tokens_in

    lm = load(args.model, base=args.base, checkpoint=args.checkpoint).with_context(args.context)
    if not args.special and lm.tokenizer is not None:
        found = dict.fromkeys(token for prompt in args.prompt for token in special_tokens_in(lm.tokenizer, prompt))
        if found:
            say(f"The prompt's {first_few(list(found))} is read as text: give --special to read it as a special token.")
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
        seed=args.seed,
        stop=args.stop,
        special=args.special,
        stream=show if streaming else None,
        **sampling_settings(args),
    )
    if streaming:
        print("" if begun else args.prompt[0])
        return 0
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(json.dumps({"prompt": prompt, "text": text}) if args.json else f"{prompt}{text}\n")
    return 0
