"""`slmjax chat`: talk with a model by its own chat template."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from slmjax.cli.shared.model_arguments import add_checkpoint_argument
from slmjax.cli.shared.option_types import whole_number
from slmjax.cli.shared.sampling_arguments import add_context_argument, add_sampling_arguments, sampling_settings
from slmjax.console import say

HELP = "talk with a model"
EXAMPLE = "slmjax chat --model my-model --system 'Answer in one sentence.'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, help="model that has a chat template")
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter (default: the one that it names)")
    add_checkpoint_argument(parser)
    parser.add_argument("--system", help="system prompt")
    parser.add_argument(
        "--max-new-tokens", type=whole_number(1), help="maximum tokens per answer (default: the model's, else 512)"
    )
    add_context_argument(parser, "the model's, at most 4096")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Answer each line of standard input as it comes; /reset forgets the conversation, /exit ends it."""
    from slmjax.errors import UserError
    from slmjax.formats.models import load
    from slmjax.inference.chat import Conversation

    lm = load(args.model, base=args.base, checkpoint=args.checkpoint).with_context(args.context)
    conversation = Conversation(
        lm,
        system=args.system,
        max_new_tokens=args.max_new_tokens,
        context=args.context or 4096,
        seed=args.seed,
        stop=args.stop,
        **sampling_settings(args),
    )
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            conversation.reset()
        elif line:
            try:
                with _ctrl_c() as pressed:
                    conversation.answer(line, partial(_show, pressed))
            except UserError as error:
                if not sys.stdin.isatty():
                    raise
                say(f"slmjax: error: {error}")
            print()
    return 0


def _lines() -> Iterator[str]:
    """Lines of standard input without surrounding white space, with a prompt if it is a terminal."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    say("/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C ends an answer.")
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


def _show(pressed: list[int], piece: str) -> bool:
    """Print a piece of an answer; returns whether to end it here."""
    print(piece, end="", flush=True)
    return bool(pressed)


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C is pressed inside; pressed again, it interrupts as ever."""
    pressed: list[int] = []

    def press(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
