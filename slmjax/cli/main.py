"""The command `slmjax`: run a subcommand's module; a user's mistake becomes a sentence on stderr and status 2."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from importlib import import_module

from slmjax.cli.shared.compiled_programs import keep_compiled_programs
from slmjax.cli.shared.malloc_settings import begin_with_kept_memory
from slmjax.console import say
from slmjax.errors import UserError, did_you_mean, one_line

# Each command is a module of this package with HELP, EXAMPLE, add_arguments(parser) and run(args) -> exit status.
COMMANDS = (
    "quickstart",
    "train",
    "generate",
    "chat",
    "evaluate",
    "inspect",
    "convert",
    "interpolate",
    "data",
    "tokenizer",
)
OVERRIDE = "--config."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        if message.startswith("argument COMMAND: invalid choice"):
            wrong = message.split("'")[1]
            message = f"There is no command {wrong!r}; {did_you_mean(wrong, COMMANDS)}"
        _complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    from slmjax import __version__

    parser = _Parser(
        prog="slmjax",
        description="The small-language-model laboratory in JAX.",
        epilog="Example: slmjax quickstart",
        allow_abbrev=False,
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


def command() -> int:
    """Run `main` as a process of its own, which may re-execute itself."""
    begin_with_kept_memory()
    return main()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 a user's mistake, 130 interrupted."""
    argv, overrides = _take_overrides(list(sys.argv[1:] if argv is None else argv))
    try:
        args = _parser().parse_args(argv)
    except SystemExit as done:  # --help, --version, or a mistake that has been told
        return int(done.code or 0)
    args.overrides = overrides
    if overrides and not getattr(args, "config", None):
        _complain(
            f"{args.command} takes no {overrides[0].partition('=')[0]} here: it overrides a key of --config FILE."
        )
        return 2
    return run_command(args)


def run_command(args: argparse.Namespace) -> int:
    """Run `args.run(args)`; returns the exit status, 2 after the one sentence of a user's mistake."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_compiled_programs()
    if hasattr(sys.stdout, "reconfigure"):  # a file's name or an answer may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone; nothing is to be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _complain(f"{error.filename or 'the disk'}: {error.strerror or error}.")
        return 2
    except Exception as error:
        if not _out_of_memory(error):
            raise
        _complain(
            f"{args.command} ran out of memory: give it less at once, or a machine with more ({one_line(error)})."
        )
        return 2


def _take_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """The rest of the arguments, and `--config.key=value` taken out of them, also where a space stands for the =."""
    rest: list[str] = []
    overrides: list[str] = []
    while argv:
        argument = argv.pop(0)
        if argument == "--":
            return [*rest, argument, *argv], overrides
        if not argument.startswith(OVERRIDE):
            rest.append(argument)
        elif "=" not in argument and argv and not argv[0].startswith("--"):
            overrides.append(f"{argument}={argv.pop(0)}")
        else:
            overrides.append(argument)
    return rest, overrides


def _out_of_memory(error: Exception) -> bool:
    """Told by name and text, so that jax need not be imported to ask."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    )


def _complain(message: str) -> None:
    say(f"slmjax: error: {' '.join(message.split())}")


if __name__ == "__main__":
    raise SystemExit(command())
