"""`slmjax inspect`: describe what lies at a path, and what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from slmjax.cli.shared.model_arguments import add_checkpoint_argument
from slmjax.cli.shared.option_types import whole_number
from slmjax.quantities import json_text

HELP = "describe a run, checkpoint, config, saved model or named model, and what it costs"
EXAMPLE = "slmjax inspect runs/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "path",
        help="run directory, checkpoint, config file, model or adapter directory, .gguf file, hub id, or model name",
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=1, help="rows of the key/value cache (default: %(default)s)"
    )
    parser.add_argument(
        "--context",
        type=whole_number(0),
        default=0,
        help="tokens per row of the key/value cache (default: the model's context)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print architecture, parameters and costs; of an adapter its method, base and sizes."""
    from slmjax.files import local_path
    from slmjax.formats.models import inspect

    path = local_path(args.path, "The path")
    if path.is_file() and path.suffix == ".py":
        return _print(_config(path, args.batch_size, args.context), args.json)
    return _print(
        inspect(args.path, batch_size=args.batch_size, context=args.context, checkpoint=args.checkpoint), args.json
    )


def _print(facts: dict[str, Any], as_json: bool) -> int:
    from slmjax.cli.shared.table import print_table

    if as_json:
        print(json_text(facts))
    else:
        print_table({name.replace("_", " "): _human(name, value) for name, value in facts.items()})
    return 0


def _config(path: Path, batch_size: int, context: int) -> dict[str, Any]:
    """The network that a config file trains."""
    from slmjax.cli.shared.config_files import load_config
    from slmjax.formats.facts import describe_finetuning
    from slmjax.formats.models import describe_config
    from slmjax.recipes.config import run_config

    config = run_config(load_config(str(path), []))
    facts = {"kind": "config", "total_steps": config.total_steps, "tokens_per_step": config.tokens_per_step}
    facts |= describe_finetuning(config.model, config.peft)
    return facts | describe_config(config.model, batch_size, context)


def _human(name: str, value: Any) -> Any:
    from slmjax.quantities import format_bytes

    if "_bytes" in name:
        return format_bytes(value)
    if "flops" in name:
        return f"{value / 1e9:,.4g} G"
    if isinstance(value, list | tuple):
        if len(value) <= 6:
            return ", ".join(map(str, value)) or "none"
        return f"{value[0]} ... {value[-1]} ({len(value)})"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
