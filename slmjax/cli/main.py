"""The command `slmjax`: runs a subcommand's file, and turns a user's mistake into a sentence and status 2."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from importlib import import_module

# Each command is a module of this package with HELP, EXAMPLE, add_arguments(parser) and run(args) -> exit status.
COMMANDS = ("quickstart", "train", "generate", "evaluate", "inspect", "convert", "data", "tokenizer")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        if "invalid choice" in message:
            wrong = message.split("'")[1]
            close = difflib.get_close_matches(wrong, COMMANDS, n=1)
            message = f"there is no command {wrong!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        print(f"slmjax: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    from slmjax import __version__

    parser = _Parser(
        prog="slmjax",
        description="The small-language-model laboratory in JAX.",
        epilog="Example: slmjax quickstart",
    )
    parser.add_argument("--version", action="version", version=f"slmjax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"slmjax.cli.{name}")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=f"Example: {module.EXAMPLE}",
            allow_abbrev=False,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 a user's mistake, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = _parser().parse_known_args(argv)
    args.overrides = [a for a in rest if a.startswith("--config.")]
    unknown = [a for a in rest if not a.startswith("--config.")]
    if unknown or (args.overrides and not hasattr(args, "config")):
        print(f"slmjax: error: {args.command} does not know {' '.join(unknown or args.overrides)}", file=sys.stderr)
        return 2
    from slmjax.errors import UserError

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return args.run(args)
    except UserError as error:
        print(f"slmjax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
